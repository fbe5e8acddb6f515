"""Which runs are begun, and which are claimed: by their workspace, their label, and what the API pushed."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from orcheo.models import WorkflowRun
from psycopg.types.json import Jsonb

from orcheo_dispatch.shared.ledger.model import Admission, Claim, Push
from orcheo_dispatch.shared.ledger.runs import NotBegun, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.dispatch import DEFAULT_TRIGGERS
from tests.support.database.databases import Database
from tests.support.database.runs import (
    VERSION_ID,
    audit,
    claim_all,
    everything,
    execute,
    insert_workflow,
    ledger,
    read_run,
    store_of,
)

_A, _B = "a1f8f6de-4f0c-4a51-93a4-5a1b6a0f7d01", "b1f8f6de-4f0c-4a51-93a4-5a1b6a0f7d02"
_SAME = "as the column"
_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
VALUES (%s, %s, %s, 'pending', %s, %s, %s, %s, %s)
"""
_CHAT = {"message": "hi", "history": [], "thread_id": "t", "session_id": "t", "metadata": {}}
_CHATKIT_TRIGGER: dict[str, Any] = {"source": "chatkit", "message": "hi", "client_thread_id": None, "metadata": {}}


def _insert(
    database: Database,
    workflow_id: str,
    *,
    label: str = "webhook",
    actor: str | None = None,
    workspace: str | None = _A,
    payload_workspace: str | None = _SAME,
    inputs: dict[str, Any] | None = None,
) -> str:
    """Insert a pending run as Orcheo's model writes it."""
    run = WorkflowRun(
        workflow_id=UUID(workflow_id),
        workflow_version_id=UUID(VERSION_ID),
        triggered_by=label,
        input_payload=inputs or {},
        workspace_id=workspace if payload_workspace == _SAME else payload_workspace,
    )
    run.record_event(actor=actor or label, action="run_created")
    at = run.created_at
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(
            _INSERT,
            (
                str(run.id),
                workflow_id,
                VERSION_ID,
                label,
                Jsonb(run.model_dump(mode="json")),
                at,
                run.updated_at,
                workspace,
            ),
        )
    return str(run.id)


def _workflow(database: Database, *, owner: str | None = _A, archived: bool = False) -> str:
    workflow_id = str(uuid4())
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        insert_workflow(connection, workflow_id, owner=owner, archived=archived)
    return workflow_id


def _begin(store: Store, run_id: str) -> Run | NotBegun:
    (claim,) = [claim for claim in claim_all(store, triggers=DEFAULT_TRIGGERS) if claim.run_id == run_id]
    return store.begin(claim, worker_id=uuid4(), lease=30)


# --- workspaces


@pytest.mark.parametrize(
    ("owner", "archived", "workspace", "payload_workspace", "why"),
    [
        (_A, False, _A, _A, None),
        # Rows of before Orcheo had workspaces, whose column it filled later.
        (_A, False, _A, None, None),
        # Belongs to all, as in Orcheo.
        (None, False, _A, _A, None),
        (_A, False, None, None, "workspace_missing"),
        (_A, False, None, _A, "workspace_missing"),
        (None, False, None, None, "workspace_missing"),
        (_A, False, _B, _B, "workspace_foreign"),
        (_A, True, _B, _B, "workspace_foreign"),
        (_A, False, _A, _B, "workspace_ambiguous"),
        (_B, False, _A, _B, "workspace_ambiguous"),
        (_A, True, _A, _A, "workflow_archived"),
        (None, True, _A, _A, "workflow_archived"),
    ],
)
def test_run_begins_only_in_the_workspace_of_its_workflow(
    database: Database,
    owner: str | None,
    archived: bool,
    workspace: str | None,
    payload_workspace: str | None,
    why: str | None,
) -> None:
    workflow_id = _workflow(database, owner=owner, archived=archived)
    run_id = _insert(database, workflow_id, workspace=workspace, payload_workspace=payload_workspace)
    with store_of(database) as (store, _):
        answer = _begin(store, run_id)
        if why is None:
            assert isinstance(answer, Run)
            assert answer.workspace_id == workspace
            return
        assert isinstance(answer, NotBegun)
        # The slot is that of the workspace under which the API counted the run.
        assert (answer.reason, answer.rejected, answer.slot_due_in) == (why, True, workspace)
        row, entry = read_run(database, run_id), ledger(database, run_id)
        assert (row["status"], audit(row)) == ("cancelled", ["run_created", "run_cancelled"])
        assert row["payload"]["error"] == row["payload"]["audit_log"][-1]["metadata"]["reason"] != ""
        assert row["payload"]["started_at"] is None
        assert row["payload"]["completed_at"] is not None
        assert (entry["state"], entry["outcome"], entry["reason"], entry["attempts"]) == (
            "settled",
            "cancelled",
            why,
            0,
        )
        # Nothing gives a slot back a second time.
        assert [run for run, _ in store.slots_due(older_than=0, batch=10)] == ([run_id] if workspace else [])
        store.slots_returned([run_id])
        assert (
            store.adopt_cancelled(
                triggers=DEFAULT_TRIGGERS, every_trigger=True, younger_than=60, dispatcher_id=uuid4(), batch=10
            )
            == 0
        )
        assert claim_all(store, triggers=DEFAULT_TRIGGERS) == []


def test_run_of_a_workflow_that_is_gone_is_rejected(database: Database) -> None:
    run_id = _insert(database, str(uuid4()))
    with store_of(database) as (store, _):
        answer = _begin(store, run_id)
    assert isinstance(answer, NotBegun)
    assert (answer.reason, answer.slot_due_in) == ("workflow_unavailable", _A)
    assert read_run(database, run_id)["payload"]["error"] == "Workflow is archived or unavailable."


def test_rejected_run_holds_up_none_of_its_message(database: Database) -> None:
    ours, archived, foreign = _workflow(database), _workflow(database, archived=True), _workflow(database, owner=_B)
    runs = [_insert(database, workflow) for workflow in (ours, archived, foreign, ours)]
    with store_of(database) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store)}
        answers = store.begin_all([claims[run] for run in runs], worker_id=uuid4(), lease=30)
    assert [isinstance(answer, Run) for answer in answers] == [True, False, False, True]
    assert [read_run(database, run)["status"] for run in runs] == ["running", "cancelled", "cancelled", "running"]


# --- what is claimed


def _claims(store: Store, **arguments: Any) -> set[str]:
    return {claim.run_id for claim in claim_all(store, **arguments)}


def _push(
    store: Store, run_id: str, workspace: str | None = _A, triggers: tuple[str, ...] = DEFAULT_TRIGGERS
) -> Admission:
    admissions = store.admit_pushed(
        [Push(run_id, workspace)], triggers=triggers, every_trigger="*" in triggers, dispatcher_id=uuid4()
    )
    return admissions[Push(run_id, workspace)]


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("label", ["nightly import", "mcp", "*", "chatkit", "we\u202ebhook"])
def test_pushed_run_is_claimed_whatever_its_label(database: Database, label: str, in_turn: bool) -> None:
    workflow_id = _workflow(database)
    pushed, silent = (_insert(database, workflow_id, label=label, actor="manual") for _ in range(2))
    with store_of(database) as (store, _):
        assert not store.look(triggers=DEFAULT_TRIGGERS, every_trigger=False).pending
        assert _push(store, pushed) == Admission(known=True, admitted=True, refused=False)
        assert _push(store, pushed).admitted is False
        assert store.look(triggers=DEFAULT_TRIGGERS, every_trigger=False).pending
        assert _claims(store, triggers=DEFAULT_TRIGGERS, in_turn=in_turn) == {pushed}
        assert isinstance(store.begin(_claim_of(database, pushed), worker_id=uuid4(), lease=30), Run)
        # Its worker is lost and it is pending again: it is still ours.
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET state = 'settled', outcome = 'requeued', settled_at = now(),"
            " lease_expires_at = NULL",
        )
        execute(database, "UPDATE workflow_runs SET status = 'pending' WHERE id = %s", pushed)
        assert _claims(store, triggers=DEFAULT_TRIGGERS, in_turn=in_turn) == {pushed}
    assert everything(database, "SELECT run_id FROM orcheo_dispatch.dispatch WHERE run_id = %s", silent) == []


def _claim_of(database: Database, run_id: str) -> Claim:
    return Claim(run_id, ledger(database, run_id)["fence"])


@pytest.mark.parametrize(("named", "admitted"), [(_A, True), (_B, False), (None, False)])
def test_push_admits_only_under_the_workspace_of_the_run(database: Database, named: str | None, admitted: bool) -> None:
    run_id = _insert(database, _workflow(database), label="x", actor="manual")
    with store_of(database) as (store, _):
        assert _push(store, run_id, named) == Admission(known=True, admitted=admitted, refused=not admitted)
        assert _claims(store) == ({run_id} if admitted else set())


def test_pushes_are_admitted_each_by_its_own_run(database: Database) -> None:
    workflow_id = _workflow(database)
    mine, foreign, twice = (_insert(database, workflow_id, label="x", actor="manual") for _ in range(3))
    listed = _insert(database, workflow_id)
    unknown = str(uuid4())
    pushes = [Push(mine, _A), Push(foreign, _B), Push(twice, _B), Push(twice, _A), Push(listed, _A), Push(unknown, _A)]
    with store_of(database) as (store, _):
        assert store.admit_pushed(
            [*pushes, *pushes], triggers=DEFAULT_TRIGGERS, every_trigger=False, dispatcher_id=uuid4()
        ) == {
            Push(mine, _A): Admission(known=True, admitted=True),
            Push(foreign, _B): Admission(known=True, refused=True),
            Push(twice, _B): Admission(known=True, refused=True),
            Push(twice, _A): Admission(known=True, admitted=True),
            Push(listed, _A): Admission(known=True),
            Push(unknown, _A): Admission(known=False),
        }
        assert _claims(store, triggers=DEFAULT_TRIGGERS) == {mine, twice, listed}


def test_push_of_what_needs_none_is_not_written_down(database: Database) -> None:
    workflow_id = _workflow(database)
    listed = _insert(database, workflow_id)
    over = _insert(database, workflow_id, label="x")
    execute(database, "UPDATE workflow_runs SET status = 'succeeded' WHERE id = %s", over)
    with store_of(database) as (store, _):
        assert _push(store, listed) == Admission(known=True)
        assert _push(store, over) == Admission(known=True)
        assert _push(store, str(uuid4())) == Admission(known=False)
    assert everything(database, "SELECT run_id FROM orcheo_dispatch.dispatch") == []


def test_pushed_run_that_is_cancelled_before_its_claim_owes_its_slot(database: Database) -> None:
    run_id = _insert(database, _workflow(database), label="x", actor="manual")
    with store_of(database) as (store, _):
        _push(store, run_id)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled', updated_at = now() WHERE id = %s", run_id)
        arguments: dict[str, Any] = {
            "triggers": DEFAULT_TRIGGERS,
            "every_trigger": False,
            "younger_than": 60,
            "batch": 10,
        }
        assert store.adopt_cancelled(dispatcher_id=uuid4(), **arguments) == 1
        assert store.slots_due(older_than=0, batch=10) == [(run_id, _A)]
        assert store.adopt_cancelled(dispatcher_id=uuid4(), **arguments) == 0


def test_labelled_run_whose_push_was_lost_is_told_by_its_audit_log(database: Database) -> None:
    workflow_id = _workflow(database)
    labelled = _insert(database, workflow_id, label="nightly import", actor="ada")
    # `POST .../runs` and ChatKit note the label as the actor.
    _insert(database, workflow_id, label="nightly import")
    _insert(database, workflow_id, label="chatkit", inputs=_CHAT)
    _insert(database, workflow_id, label="webhook", actor="ada")
    arguments: dict[str, Any] = {
        "triggers": DEFAULT_TRIGGERS,
        "every_trigger": False,
        "dispatcher_id": uuid4(),
        "batch": 10,
    }
    with store_of(database) as (store, _):
        assert store.admit_labelled(older_than=60, **arguments) == []
        execute(database, "UPDATE workflow_runs SET created_at = now() - interval '11 s'")
        assert store.admit_labelled(older_than=10, **arguments) == [labelled]
        assert store.admit_labelled(older_than=10, **arguments) == []
        assert labelled in _claims(store, triggers=DEFAULT_TRIGGERS)


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("inputs", [_CHAT, {**_CHAT, "model": "x"}, _CHATKIT_TRIGGER])
@pytest.mark.parametrize("label", ["chatkit", "ada@example.com"])
def test_runs_of_chatkit_are_never_claimed(
    database: Database, label: str, inputs: dict[str, Any], in_turn: bool
) -> None:
    workflow_id = _workflow(database)
    _insert(database, workflow_id, label=label, inputs=inputs)
    other = _insert(database, workflow_id, label=label, inputs={"message": "hi"})
    with store_of(database) as (store, _):
        for triggers in (("*",), (label,)):
            every = triggers == ("*",)
            assert store.look(triggers=triggers, every_trigger=every).pending
            claims = claim_all(store, triggers=triggers, every_trigger=every, in_turn=in_turn)
            assert [claim.run_id for claim in claims] == [other]
            assert store.release(claims, reason="test") == 1


# --- one definition


def test_views_and_claims_agree_on_whose_a_run_is(database: Database) -> None:
    workflow_id = _workflow(database)
    labels = ["webhook", "api", "chatkit", "nightly import"]
    runs = [
        _insert(database, workflow_id, label=label, actor=actor, inputs=inputs)
        for label, actor, inputs in itertools.product(labels, (None, "ada"), ({}, _CHAT, _CHATKIT_TRIGGER))
    ]
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '2 minutes'")
    with store_of(database) as (store, _):
        for number, triggers in enumerate([DEFAULT_TRIGGERS, ("webhook", "chatkit"), ("*",)]):
            execute(database, "DELETE FROM orcheo_dispatch.process")
            execute(
                database,
                "INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, triggers)"
                " VALUES (gen_random_uuid(), 'dispatcher', 'h', 1, '1', 1, %s)",
                list(triggers),
            )
            execute(database, "DELETE FROM orcheo_dispatch.dispatch")
            for run in runs[number::5]:
                _push(store, run, triggers=triggers)
            ours = _rows(database, "SELECT run_id FROM orcheo_dispatch.pending_runs WHERE ours")
            unclaimed = _rows(database, "SELECT run_id FROM orcheo_dispatch.unclaimed_runs")
            claimed = {claim.run_id for claim in claim_all(store, triggers=triggers, every_trigger=triggers == ("*",))}
            assert claimed == ours
            assert unclaimed == set(runs) - claimed
            assert unclaimed


def _rows(database: Database, query: str) -> set[str]:
    return {row["run_id"] for row in everything(database, query)}


def test_run_is_unclaimed_after_a_minute_and_with_a_reason(database: Database) -> None:
    workflow_id = _workflow(database)
    young, labelled, chat = (
        _insert(database, workflow_id, label="x"),
        _insert(database, workflow_id, label="y"),
        _insert(database, workflow_id, label="chatkit", inputs=_CHAT),
    )
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '61 s' WHERE id <> %s", young)
    reasons = {
        row["run_id"]: row["reason"] for row in everything(database, "SELECT * FROM orcheo_dispatch.unclaimed_runs")
    }
    assert reasons == {labelled: "not_in_allow_list", chat: "chatkit"}
