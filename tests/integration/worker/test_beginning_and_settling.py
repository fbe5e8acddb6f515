"""Begin, heartbeat and settle: one conditional statement each, under the fence, column and payload together."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import RefusedError
from orcheo_dispatch.shared.ledger.model import Claim, Outcome
from orcheo_dispatch.shared.ledger.runs import LOCKED, Ending, NotBegun, Run, Settlement
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.support.database.databases import Database
from tests.support.database.runs import (
    audit,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    nth_claim,
    read_run,
    store_of,
)
from tests.support.database.uncommitted import Uncommitted

WORKER = uuid4()


def _begun(store: Store) -> Claim:
    (claim,) = claim_all(store)
    assert isinstance(store.begin(claim, worker_id=WORKER, lease=30), Run)
    return claim


def test_begin_moves_run_and_ledger_together(database: Database) -> None:
    (run_id,) = insert_runs(database, inputs={"body": {"name": "Ada"}})
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        begun = store.begin(claim, worker_id=WORKER, lease=30)
    assert isinstance(begun, Run)
    assert begun.inputs == {"body": {"name": "Ada"}}
    assert begun.attempt == 1
    assert 5 < begun.pending_for < 60, "from its creation, which is ten seconds ago"
    assert 0 <= begun.queued_for < 5
    run, row = read_run(database, run_id), ledger(database, run_id)
    assert run["status"] == "running"
    assert run["payload"]["started_at"] == run["payload"]["updated_at"]
    assert audit(run) == ["run_created", "run_started"]
    assert (row["state"], row["worker_id"], row["slot"]) == ("running", WORKER, "held")
    assert (row["outcome"], row["reason"], row["settled_at"]) == (None, None, None), "it has not ended"
    assert row["begun_at"] == row["heartbeat_at"]
    assert row["lease_expires_at"] - row["begun_at"] == timedelta(seconds=30)


def test_succeeded_run_can_be_read_by_orcheo(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        store.settle(_begun(store), Ending.succeeded('{"final_state": {"n": 1}}'))
    run = read_run(database, run_id)
    assert run["payload"]["output_payload"] == {"final_state": {"n": 1}}
    assert run["payload"]["error"] is None
    assert run["payload"]["completed_at"] == run["payload"]["updated_at"]
    assert audit(run) == ["run_created", "run_started", "run_succeeded"]


def test_failed_run_carries_its_error_and_audit_log_too(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        store.settle(_begun(store), Ending.failed("no such city: \"Löwen'", reason="ValueError"))
    run = read_run(database, run_id)
    assert run["status"] == "failed"
    assert run["payload"]["error"] == "no such city: \"Löwen'"
    assert run["payload"]["audit_log"][-1]["metadata"] == {"error": "no such city: \"Löwen'"}
    assert ledger(database, run_id)["reason"] == "ValueError"


def test_requeued_run_is_pending_again_and_keeps_its_slot(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        first = _begun(store)
        settled = store.settle(first, Ending.requeued("worker stopped"))
        assert settled is not None
        assert settled.slot_due_in is None
        run = read_run(database, run_id)
        assert (run["status"], run["payload"]["started_at"], run["payload"]["completed_at"]) == ("pending", None, None)
        assert ledger(database, run_id)["slot"] == "held"
        (claim,) = claim_all(store)
        assert claim.fence > first.fence


def test_stale_fence_cannot_begin_run(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        (old,) = claim_all(store)
        store.release([old], reason="test")
        (new,) = claim_all(store)
        answer = store.begin(old, worker_id=WORKER, lease=30)
        assert isinstance(answer, NotBegun)
        assert answer.reason == "stale"
        assert read_run(database, run_id)["status"] == "pending"
        assert isinstance(store.begin(new, worker_id=WORKER, lease=30), Run)


def test_stale_fence_cannot_heartbeat_run(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        old = _begun(store)
        store.settle(old, Ending.requeued("test"))
        new = _begun(store)
        before = ledger(database, run_id)["lease_expires_at"]
        assert store.heartbeat([old], lease=3600) == {}
        assert ledger(database, run_id)["lease_expires_at"] == before
        assert store.heartbeat([new], lease=3600) == {new: True}
        assert ledger(database, run_id)["lease_expires_at"] > before


def test_stale_fence_cannot_settle_run(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        old = _begun(store)
        store.settle(old, Ending.requeued("test"))
        new = _begun(store)
        assert store.settle(old, Ending.succeeded('{"late": true}')) is None
        assert read_run(database, run_id)["status"] == "running"
        settled = store.settle(new, Ending.succeeded('{"final_state": {}}'))
        assert settled is not None
        assert read_run(database, run_id)["payload"]["output_payload"] == {"final_state": {}}
        assert store.settle(new, Ending.failed("again", reason="x")) is None


def test_message_that_comes_again_leaves_a_live_run_alone(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim = _begun(store)
        before = ledger(database, run_id)
        answer = store.begin(claim, worker_id=uuid4(), lease=30)
        assert isinstance(answer, NotBegun)
        assert answer.reason == "stale"
        assert ledger(database, run_id) == before
        assert store.settle(claim, Ending.succeeded('{"final_state": {}}')) is not None


def test_run_begins_once_when_two_workers_get_the_same_message(database: Database) -> None:
    ids = insert_runs(database, 200)
    with store_of(database) as (store, _):
        claims = claim_all(store, 200)
    answers: list[Run | NotBegun] = []
    start = threading.Barrier(2)

    def work() -> None:
        with store_of(database, connections=1) as (mine, _):
            start.wait()
            for claim in claims:
                answers.append(mine.begin(claim, worker_id=uuid4(), lease=30))  # noqa: PERF401

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begun = [answer.claim.run_id for answer in answers if isinstance(answer, Run)]
    assert len(answers) == 400
    assert sorted(begun) == sorted(ids)


@pytest.mark.parametrize(
    ("status", "outcome", "slot"), [("cancelled", "cancelled", "due"), ("running", "skipped", "held")]
)
def test_run_not_pending_any_more_is_skipped_at_begin(database: Database, status: str, outcome: str, slot: str) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        execute(database, "UPDATE workflow_runs SET status = %s WHERE id = %s", status, run_id)
        answer = store.begin(claim, worker_id=WORKER, lease=30)
    assert isinstance(answer, NotBegun)
    assert answer.reason == f"run is {status}"
    row = ledger(database, run_id)
    assert (row["state"], row["outcome"], row["slot"], row["attempts"]) == ("settled", outcome, slot, 0)


def test_begin_that_meets_a_cancel_sees_it_afterwards(database: Database) -> None:
    """The API holds the run's row while a worker begins: the worker must decide on what the API commits."""
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as api:
        (claim,) = claim_all(store)
        api.execute("UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", (run_id,))
        assert store.begin(claim, worker_id=WORKER, lease=30) == NotBegun(claim, LOCKED)
        api.commit()
        answer = store.begin(claim, worker_id=WORKER, lease=30)
    assert isinstance(answer, NotBegun)
    assert answer.reason == "run is cancelled"
    assert ledger(database, run_id)["outcome"] == "cancelled"


def test_run_cancelled_while_running_stays_cancelled_when_it_settles(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as api:
        claim = _begun(store)
        api.execute("UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", (run_id,))
        assert store.settle_all({claim: Ending.succeeded("{}")}) == Settlement({}, frozenset([claim]))
        api.commit()
        settled = store.settle(claim, Ending.succeeded("{}"))
        assert store.heartbeat([claim], lease=30) == {}
    row = ledger(database, run_id)
    assert (row["outcome"], row["slot"]) == ("cancelled", "due")
    assert "run_succeeded" not in str(settled)
    with psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT status FROM workflow_runs").fetchall() == [("cancelled",)]


def test_worker_is_told_of_a_cancelled_run(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim = _begun(store)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", run_id)
        assert store.ended_by_api([claim]) == {claim}


def test_slot_is_due_once_a_run(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        settled = store.settle(_begun(store), Ending.succeeded("{}"))
        assert settled is not None
        assert settled.slot_due_in is not None
        assert [run for run, _ in store.slots_due(older_than=0, batch=10)] == [run_id]
        store.slots_returned([run_id])
        assert store.slots_due(older_than=0, batch=10) == []
        # An operator sends the run round again: its slot is not given back a second time.
        execute(database, "UPDATE workflow_runs SET status = 'pending' WHERE id = %s", run_id)
        again = store.settle(_begun(store), Ending.succeeded("{}"))
        assert again is not None
        assert again.slot_due_in is None


def test_output_that_jsonb_refuses_changes_nothing(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim = _begun(store)
        with pytest.raises(RefusedError):
            store.settle(claim, Ending.succeeded(json.dumps({"text": "\x00"})))
        assert read_run(database, run_id)["status"] == "running"
        assert ledger(database, run_id)["state"] == "running"
        store.settle(claim, Ending.failed("cannot be stored", reason="unstorable_output"))
    assert read_run(database, run_id)["status"] == "failed"


def test_outcome_of_rejected_run_is_cancelled(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        settled = store.settle(_begun(store), Ending.cancelled("Workflow is archived."))
    assert settled is not None
    assert settled.outcome is Outcome.CANCELLED
    run = read_run(database, run_id)
    assert (run["status"], run["payload"]["error"]) == ("cancelled", "Workflow is archived.")
    assert run["payload"]["audit_log"][-1]["metadata"] == {"reason": "Workflow is archived."}


def test_runs_begin_together_each_under_its_own_fence(database: Database) -> None:
    ids = insert_runs(database, 5)
    with store_of(database) as (store, _):
        fresh, replayed, old, cancelled, deleted = sorted(claim_all(store), key=lambda claim: ids.index(claim.run_id))
        store.begin(replayed, worker_id=WORKER, lease=30)
        store.release([old], reason="test")
        (new,) = claim_all(store)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", cancelled.run_id)
        execute(database, "DELETE FROM workflow_runs WHERE id = %s", deleted.run_id)
        claims = [replayed, deleted, new, fresh, old, cancelled]
        answers = store.begin_all(claims, worker_id=WORKER, lease=30)
    told = [answer.run_id if isinstance(answer, Run) else answer.reason for answer in answers]
    assert told == ["stale", "run is gone", new.run_id, fresh.run_id, "stale", "run is cancelled"]
    assert {row["run_id"]: (row["state"], nth_claim(row["fence"]), row["attempts"]) for row in _rows(database)} == {
        fresh.run_id: ("running", 1, 1),
        replayed.run_id: ("running", 1, 1),
        new.run_id: ("running", 2, 1),
        cancelled.run_id: ("settled", 1, 0),
        deleted.run_id: ("settled", 1, 0),
    }


def test_runs_are_settled_together_each_with_its_own_ending_under_its_own_fence(database: Database) -> None:
    insert_runs(database, 5)
    with store_of(database) as (store, _):
        good, bad, moved, cancelled, again = claims = claim_all(store)
        store.begin_all(claims, worker_id=WORKER, lease=30)
        store.settle(moved, Ending.requeued("test"))
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", cancelled.run_id)
        settled = store.settle_all(
            {
                cancelled: Ending.succeeded('{"final_state": 1}'),
                again: Ending.requeued("drained"),
                moved: Ending.succeeded('{"final_state": 2}'),
                bad: Ending.failed("no", reason="ValueError"),
                good: Ending.succeeded('{"final_state": 3}'),
            }
        ).settled
    assert {
        claim: (each.outcome.value, each.ended, each.slot_due_in is not None) for claim, each in settled.items()
    } == {
        cancelled: ("cancelled", False, True),
        again: ("requeued", True, False),
        bad: ("failed", True, True),
        good: ("succeeded", True, True),
    }
    assert read_run(database, good.run_id)["payload"]["output_payload"] == {"final_state": 3}
    assert read_run(database, bad.run_id)["payload"]["error"] == "no"
    assert read_run(database, again.run_id)["status"] == "pending"
    assert read_run(database, moved.run_id)["payload"]["output_payload"] is None


def test_locked_run_holds_up_the_begin_of_no_other(database: Database) -> None:
    insert_runs(database, 3)
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as api:
        claims = claim_all(store)
        api.execute("SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (claims[1].run_id,))
        answers = store.begin_all(claims, worker_id=WORKER, lease=30)
        assert [isinstance(answer, Run) for answer in answers] == [True, False, True]
        assert answers[1] == NotBegun(claims[1], LOCKED)
        api.rollback()
        assert isinstance(store.begin(claims[1], worker_id=WORKER, lease=30), Run)


def test_workers_and_dispatchers_that_write_the_same_rows_never_wait_in_a_circle(database: Database) -> None:
    """Each statement on many rows locks them in one order; in any other Postgres would end one of two."""
    insert_runs(database, 60)
    with store_of(database) as (store, _):
        claims = claim_all(store)
        store.begin_all(claims[:40], worker_id=WORKER, lease=30)
    deadline = time.monotonic() + 5
    errors: list[Exception] = []

    def again_and_again(write: Callable[[Store], object]) -> None:
        try:
            with store_of(database, connections=1) as (mine, _):
                while time.monotonic() < deadline and not errors:
                    write(mine)
        except Exception as error:
            errors.append(error)

    # Once each way round, since that is how two of them would meet.
    writes: list[Callable[[Store], object]] = [
        lambda mine: mine.heartbeat(claims, lease=30),
        lambda mine: mine.heartbeat(claims[::-1], lease=30),
        lambda mine: mine.settle_all(dict.fromkeys(claims[:20], Ending.requeued("test"))),
        lambda mine: mine.begin_all(claims[::-1], worker_id=WORKER, lease=30),
        lambda mine: mine.extend(claims[::-1], lease=30, reason="test"),
        lambda mine: mine.extend(claims, lease=30, reason="test"),
    ]
    threads = [threading.Thread(target=again_and_again, args=[write]) for write in writes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def _rows(database: Database) -> list[dict[str, Any]]:
    return everything(database, "SELECT * FROM orcheo_dispatch.dispatch")


def test_refunded_begin_is_no_attempt_and_the_others_are(database: Database) -> None:
    insert_runs(database, 2)
    with store_of(database) as (store, _):
        for begins in range(1, 4):
            runs = [store.begin(claim, worker_id=uuid4(), lease=30) for claim in claim_all(store)]
            assert sorted(run.attempt for run in runs if isinstance(run, Run)) == [1, begins]
            refunded, counted = sorted((run for run in runs if isinstance(run, Run)), key=lambda run: run.run_id)
            store.settle_all(
                {
                    refunded.claim: Ending.requeued("Runner ended.", refund=True),
                    counted.claim: Ending.requeued("Worker stopped."),
                }
            )
        rows = {row["run_id"]: row for row in (ledger(database, run.run_id) for run in (refunded, counted))}
        assert [(row["attempts"], row["refunded"]) for _, row in sorted(rows.items())] == [(3, 3), (3, 0)]
        # Nor does the dispatcher count them when the worker is lost.
        for claim in claim_all(store):
            store.begin(claim, worker_id=uuid4(), lease=30)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
        reaped = {
            run.claim.run_id: run.outcome for run in store.reap(LostRuns.REQUEUE, max_attempts=2, lease=0, batch=9)
        }
    assert reaped == {refunded.run_id: Outcome.REQUEUED, counted.run_id: Outcome.LOST}


def test_suspect_stays_one_until_it_has_ended(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):

        def begin() -> Run:
            (claim,) = claim_all(store)
            run = store.begin(claim, worker_id=uuid4(), lease=30)
            assert isinstance(run, Run)
            return run

        run = begin()
        assert not run.suspect
        store.settle(run.claim, Ending.requeued("Worker stops.", refund=True))
        run = begin()
        assert not run.suspect
        store.settle(run.claim, Ending.requeued("Runner ended.", suspect=True, refund=True))
        run = begin()
        assert (run.suspect, run.attempt) == (True, 1)
        # Handed back by a drain, or by a dispatcher: it has proved nothing.
        store.settle(run.claim, Ending.requeued("Worker stopped."))
        assert begin().suspect
        execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
        store.reap(LostRuns.REQUEUE, max_attempts=9, lease=0, batch=9)
        run = begin()
        assert run.suspect
        store.settle(run.claim, Ending.succeeded("{}"))
    assert ledger(database, run_id)["suspect"] is False


@pytest.mark.parametrize("act", ["begin", "begun", "heartbeat", "settle", "release"])
def test_no_row_of_another_run_is_locked(database: Database, act: str) -> None:
    """Locks that are skipped when they are taken would hold up others all the same."""
    insert_runs(database, 4)
    with store_of(database, connections=2) as (store, engine):
        pending, running, *others = claim_all(store, 4)
        store.begin_all([running, others[0]], worker_id=WORKER, lease=30)
        with transaction(engine) as connection:
            open_store = Store(cast("Engine", Uncommitted(connection)))
            match act:
                case "begin":
                    assert isinstance(open_store.begin(pending, worker_id=WORKER, lease=30), Run)
                case "begun":
                    assert len(open_store.begun_by(WORKER, [running], lease=30)) == 1
                case "heartbeat":
                    assert open_store.heartbeat([running], lease=30) == {running: True}
                case "settle":
                    assert open_store.settle(running, Ending.succeeded("{}"))
                case "release":
                    assert open_store.release([pending], reason="no_room") == 1
            mine = {pending.run_id, running.run_id}
            with psycopg.connect(database.dsn) as somebody:
                for table, key in (("workflow_runs", "id"), ("orcheo_dispatch.dispatch", "run_id")):
                    query = f"SELECT {key} FROM {table} FOR UPDATE SKIP LOCKED"
                    free = {run_id for (run_id,) in somebody.execute(query.encode())}
                    assert free | mine == {pending.run_id, running.run_id, *(claim.run_id for claim in others)}
                    assert table == "workflow_runs" or free & mine != mine, "the one that is changed is locked"
                somebody.rollback()


def test_settlement_names_each_run_that_is_locked_and_no_other(database: Database) -> None:
    """The third claim is stale: its run has the fence of the second claim now, and its row is locked as well."""
    free, busy, stale = sorted(insert_runs(database, 3))
    with store_of(database) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store, 3)}
        store.begin_all([*claims.values()], worker_id=WORKER, lease=30)
        assert claims[busy].fence == claims[stale].fence, "claimed at the same moment"
        execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1 WHERE run_id <> %s", free)
        claims[busy] = Claim(busy, claims[busy].fence + 1)
        with psycopg.connect(database.dsn) as somebody:
            query = "SELECT FROM orcheo_dispatch.dispatch WHERE run_id = ANY (%s) FOR UPDATE"
            somebody.execute(query, ([busy, stale],))
            settlement = store.settle_all(dict.fromkeys(claims.values(), Ending.succeeded("{}")))
    assert [*settlement.settled] == [claims[free]]
    assert [*settlement.locked] == [claims[busy]]
