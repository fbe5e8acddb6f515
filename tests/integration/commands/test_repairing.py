"""What an operator does by hand: each says what it changed and refuses what would break a rule."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.repairs import Repair, repair
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.support.database.databases import Database
from tests.support.database.runs import audit, claim_all, everything, execute, insert_runs, ledger, read_run, store_of


def _begun(store: Store) -> Claim:
    (claim,) = claim_all(store)
    assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
    return claim


def _lose_worker(database: Database) -> None:
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s' WHERE state <> 'settled'",
    )


def _one(engine: Engine, run_id: str, action: Action, *, dry_run: bool = False) -> Repair:
    (done,) = repair(engine, [run_id, run_id], action, Author("ada", Interface.COMMAND, "because"), dry_run=dry_run)
    return done


@pytest.mark.parametrize(("action", "status"), [(Action.CANCEL, "cancelled"), (Action.FAIL, "failed")])
def test_pending_run_is_ended_and_never_begins(database: Database, action: Action, status: str) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        (claim,) = claim_all(store)
        assert _one(engine, run_id, action) == Repair(run_id, "pending", status, None)
        assert not isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
    run = read_run(database, run_id)
    assert (run["status"], run["payload"]["error"]) == (status, "because")
    assert run["payload"]["audit_log"][-1]["actor"] == "operator"
    assert (ledger(database, run_id)["state"], ledger(database, run_id)["slot"]) == ("settled", "due")


def test_run_that_was_never_claimed_gives_its_slot_back(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        _one(engine, run_id, Action.FAIL)
        assert [run for run, _ in store.slots_due(older_than=0, batch=10)] == [run_id]


def test_cancel_of_a_running_run_is_left_to_its_worker(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        claim = _begun(store)
        assert _one(engine, run_id, Action.CANCEL).status_after == "cancelled"
        assert store.ended_by_api([claim]) == {claim}
        settled = store.settle(claim, Ending.succeeded("{}"))
    assert settled is not None
    assert settled.outcome == "cancelled"
    assert read_run(database, run_id)["status"] == "cancelled"


@pytest.mark.parametrize("action", [Action.FAIL, Action.REQUEUE])
def test_run_of_a_live_worker_is_refused(database: Database, action: Action) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        claim = _begun(store)
        assert _one(engine, run_id, action).refused == "its worker is alive: cancel it first"
        assert store.ended_by_api([claim]) == frozenset()
    assert read_run(database, run_id)["status"] == "running"


def test_held_run_of_a_lost_worker_is_requeued_with_all_its_attempts(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        old = _begun(store)
        _lose_worker(database)
        assert store.reap(LostRuns.HOLD, max_attempts=3, lease=0, batch=10) == []
        assert _one(engine, run_id, Action.REQUEUE) == Repair(run_id, "running", "pending", None)
        row = ledger(database, run_id)
        assert (row["outcome"], row["attempts"], row["slot"]) == ("requeued", 0, "held")
        new = _begun(store)
        assert new.fence > old.fence
        assert store.settle(old, Ending.succeeded("{}")) is None
    assert audit(read_run(database, run_id)) == ["run_created", "run_started", "run_requeued", "run_started"]


def test_failed_run_is_requeued_without_a_second_slot_to_give_back(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        store.settle(_begun(store), Ending.failed("no", reason="ValueError"))
        store.slots_returned([run_id])
        assert _one(engine, run_id, Action.REQUEUE).status_after == "pending"
        run = read_run(database, run_id)["payload"]
        assert (run["error"], run["started_at"], run["completed_at"]) == (None, None, None)
        settled = store.settle(_begun(store), Ending.succeeded("{}"))
    assert settled is not None
    assert settled.slot_due_in is None


@pytest.mark.parametrize(
    ("status", "action", "refused"),
    [
        ("succeeded", Action.REQUEUE, "run has succeeded"),
        ("succeeded", Action.CANCEL, "run is succeeded"),
        ("cancelled", Action.FAIL, "run is cancelled"),
        ("pending", Action.REQUEUE, "run is pending already"),
    ],
)
def test_what_has_ended_otherwise_is_refused(database: Database, status: str, action: Action, refused: str) -> None:
    (run_id,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET status = %s WHERE id = %s", status, run_id)
    with store_of(database) as (_, engine):
        assert _one(engine, run_id, action) == Repair(run_id, status, status, refused)
    assert everything(database, "SELECT FROM orcheo_dispatch.dispatch") == []


def test_unknown_run_is_refused(database: Database) -> None:
    with store_of(database) as (_, engine):
        assert _one(engine, "nobody", Action.CANCEL).refused == "there is no such run"


@pytest.mark.parametrize("action", [each for each in Action if each is not Action.ANSWER])
def test_dry_run_changes_nothing(database: Database, action: Action) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        _begun(store)
        _lose_worker(database)
        before = read_run(database, run_id), ledger(database, run_id)
        assert _one(engine, run_id, action, dry_run=True).refused is None
    assert (read_run(database, run_id), ledger(database, run_id)) == before
