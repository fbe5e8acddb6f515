"""What a settle and a begin make of a run, by the status that the API has given it meanwhile."""

from __future__ import annotations

from uuid import uuid4

import pytest

from orcheo_dispatch.shared.ledger.runs import Ending, NotBegun, Run
from tests.support.database.databases import Database
from tests.support.database.runs import WORKSPACE_ID, claim_all, everything, execute, insert_runs, ledger, one, store_of

_GONE = "gone"
_SUCCEEDED = Ending.succeeded('{"final_state": {}}')
_REQUEUED = Ending.requeued("test")
_WAITING = Ending.waiting("{}", checkpoint_id="c1", interrupts=2, keeps_slot=False)
_WAITING_WITH_SLOT = Ending.waiting("{}", checkpoint_id="c1", interrupts=2, keeps_slot=True)


def _make(database: Database, status: str) -> None:
    if status == _GONE:
        execute(database, "DELETE FROM workflow_runs")
    else:
        execute(database, "UPDATE workflow_runs SET status = %s", status)


@pytest.mark.parametrize(
    ("status", "ending", "outcome", "slot", "status_after"),
    [
        ("running", _SUCCEEDED, "succeeded", "due", "succeeded"),
        ("running", _REQUEUED, "requeued", "held", "pending"),
        ("running", _WAITING, "requeued", "due", "running"),
        ("running", _WAITING_WITH_SLOT, "requeued", "held", "running"),
        ("cancelled", _SUCCEEDED, "cancelled", "due", "cancelled"),
        ("cancelled", _REQUEUED, "cancelled", "due", "cancelled"),
        ("succeeded", _REQUEUED, "skipped", "due", "succeeded"),
        ("failed", _SUCCEEDED, "skipped", "due", "failed"),
        ("pending", _SUCCEEDED, "skipped", "held", "pending"),
        (_GONE, _SUCCEEDED, "skipped", "due", _GONE),
        (_GONE, _REQUEUED, "skipped", "due", _GONE),
        ("cancelled", _WAITING, "cancelled", "due", "cancelled"),
        ("cancelled", _WAITING_WITH_SLOT, "cancelled", "due", "cancelled"),
        ("succeeded", _WAITING, "skipped", "due", "succeeded"),
        ("pending", _WAITING, "skipped", "held", "pending"),
        (_GONE, _WAITING_WITH_SLOT, "skipped", "due", _GONE),
    ],
)
@pytest.mark.parametrize("workspace_id", [WORKSPACE_ID, None])
def test_settle_keeps_the_status_that_the_api_has_given(
    database: Database,
    status: str,
    ending: Ending,
    outcome: str,
    slot: str,
    status_after: str,
    workspace_id: str | None,
) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        if workspace_id is None:
            execute(database, "UPDATE orcheo_dispatch.dispatch SET workspace_id = NULL, slot = 'none'")
        _make(database, status)
        settled = store.settle(claim, ending)
    assert settled is not None
    row = ledger(database, claim.run_id)
    slot = slot if workspace_id else "none"
    assert (row["state"], row["outcome"], row["slot"]) == ("settled", outcome, slot)
    assert (settled.outcome, settled.ended) == (outcome, status == "running")
    assert settled.slot_due_in == (WORKSPACE_ID if slot == "due" else None)
    assert [run["status"] for run in everything(database, "SELECT status FROM workflow_runs")] == (
        [] if status == _GONE else [status_after]
    )
    asked = everything(database, "SELECT checkpoint_id, interrupts FROM orcheo_dispatch.question")
    waits = ending.checkpoint_id is not None and status == "running"
    assert asked == ([{"checkpoint_id": "c1", "interrupts": 2}] if waits else [])


@pytest.mark.parametrize(
    ("ending", "completed", "started"),
    [(_SUCCEEDED, True, True), (_REQUEUED, False, False), (_WAITING, False, True)],
    ids=["succeeded", "requeued", "waiting"],
)
def test_only_a_run_that_has_ended_is_completed(
    database: Database, ending: Ending, completed: bool, started: bool
) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        store.begin(claim, worker_id=uuid4(), lease=30)
        store.settle(claim, ending)
    payload = one(database, "SELECT payload FROM workflow_runs")["payload"]
    assert (payload.get("completed_at") is not None, payload["started_at"] is not None) == (completed, started)


@pytest.mark.parametrize(("refund", "refunded"), [(True, 1), (False, 0)])
def test_only_a_refund_is_refunded(database: Database, refund: bool, refunded: int) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        store.begin(claim, worker_id=uuid4(), lease=30)
        store.settle(claim, Ending.requeued("test", refund=refund))
    assert ledger(database, claim.run_id)["refunded"] == refunded


@pytest.mark.parametrize(
    ("status", "outcome", "slot", "reason"),
    [
        ("cancelled", "cancelled", "due", "run is cancelled"),
        ("succeeded", "skipped", "due", "run is succeeded"),
        ("failed", "skipped", "due", "run is failed"),
        ("running", "skipped", "held", "run is running"),
        (_GONE, "skipped", "due", "run is gone"),
    ],
)
@pytest.mark.parametrize("workspace_id", [WORKSPACE_ID, None])
def test_run_that_is_not_pending_does_not_begin(
    database: Database, status: str, outcome: str, slot: str, reason: str, workspace_id: str | None
) -> None:
    # The other run is there, pending, and not in the message.
    claim_id, _ = insert_runs(database, 2)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        claim, other = claim_all(store)
        if workspace_id is None:
            execute(database, "UPDATE orcheo_dispatch.dispatch SET workspace_id = NULL, slot = 'none'")
        if status == _GONE:
            execute(database, "DELETE FROM workflow_runs WHERE id = %s", claim_id)
        else:
            execute(database, "UPDATE workflow_runs SET status = %s WHERE id = %s", status, claim_id)
        answer = store.begin(claim, worker_id=worker_id, lease=30)
        assert isinstance(answer, NotBegun)
        assert (answer.reason, answer.slot_due_in) == (reason, workspace_id if slot == "due" else None)
    row = ledger(database, claim_id)
    assert (row["state"], row["outcome"], row["reason"]) == ("settled", outcome, reason)
    assert row["slot"] == (slot if workspace_id else "none")
    assert (row["begun_at"], row["heartbeat_at"], row["lease_expires_at"], row["attempts"]) == (None, None, None, 0)
    assert row["settled_at"] is not None
    assert ledger(database, other.run_id)["state"] == "claimed"
