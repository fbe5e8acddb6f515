"""Lost workers and lost messages: reap by lease, reconcile against what Redis holds."""

from __future__ import annotations

from uuid import uuid4

import pytest

from orcheo_dispatch.shared.ledger.model import Claim, Lapsed
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.support.database.bad_rows import refuse
from tests.support.database.databases import Database
from tests.support.database.runs import audit, claim_all, everything, execute, insert_runs, ledger, read_run, store_of


def _lost(store: Store, database: Database) -> Claim:
    """Begin a run whose worker is then never heard of again."""
    (claim,) = claim_all(store)
    assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
    _expire(database)
    return claim


def _expire(database: Database) -> None:
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s' WHERE state <> 'settled'",
    )


def test_lost_run_fails_and_owes_its_slot(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim = _lost(store, database)
        (reaped,) = store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)
        assert (reaped.claim, reaped.outcome) == (claim, "lost")
        assert store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10) == []
    run, row = read_run(database, run_id), ledger(database, run_id)
    assert run["status"] == "failed"
    assert run["payload"]["error"].startswith("Worker lost: no heartbeat since 20")
    assert run["payload"]["audit_log"][-1]["actor"] == "dispatcher"
    assert (row["state"], row["outcome"], row["slot"]) == ("settled", "lost", "due")


def _open_trace(database: Database, run_id: str) -> None:
    """Write what Orcheo's history store has written of a run that is under way."""
    execute(
        database,
        "INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at)"
        " VALUES (%s, 'w', '{}', 'running', now())",
        run_id,
    )
    execute(database, "INSERT INTO execution_history_steps VALUES (%s, 0, now(), '{\"start\": {}}')", run_id)


def test_trace_of_a_lost_run_is_closed_with_an_error_step(database: Database) -> None:
    (run_id,) = insert_runs(database)
    _open_trace(database, run_id)
    with store_of(database) as (store, _):
        _lost(store, database)
        assert store.close_traces([run_id]) == 0, "the run has not ended"
        store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)
        assert store.close_traces([run_id]) == 1
        assert store.close_traces([run_id]) == 0
    error = read_run(database, run_id)["payload"]["error"]
    (record,) = everything(database, "SELECT status, error, completed_at FROM execution_history")
    assert (record["status"], record["error"]) == ("error", error)
    assert record["completed_at"] is not None
    steps = everything(database, "SELECT step_index, payload FROM execution_history_steps ORDER BY step_index")
    assert steps[1] == {"step_index": 1, "payload": {"status": "error", "error": error}}


def test_traces_that_orcheo_never_made_cost_nothing(database: Database) -> None:
    execute(database, "DROP TABLE execution_history_steps, execution_history")
    with store_of(database) as (store, _):
        assert store.close_traces(["r1"]) == 0


def test_no_run_is_lost_before_postgres_has_been_up_for_a_lease(database: Database) -> None:
    """While it was down, no worker could renew its leases."""
    insert_runs(database)
    years = 10 * 365 * 86_400.0
    with store_of(database) as (store, _):
        claim = _lost(store, database)
        assert store.reap(LostRuns.FAIL, max_attempts=3, lease=years, batch=10) == []
        assert [each.claim for each in store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)] == [claim]


def test_lost_run_that_postgres_refuses_to_change_hides_no_other(database: Database) -> None:
    bad, good = insert_runs(database, 2)
    with store_of(database) as (store, _):
        for claim in claim_all(store):
            assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        _expire(database)
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 h' WHERE run_id = %s",
            bad,
        )
        refuse(database, bad)
        assert store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=1) == []
        assert [each.claim.run_id for each in store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=1)] == [good]


def test_worker_that_comes_back_after_reap_changes_nothing(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim = _lost(store, database)
        store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)
        assert store.heartbeat([claim], lease=30) == {}
        assert store.settle(claim, Ending.succeeded('{"late": true}')) is None
    assert read_run(database, run_id)["status"] == "failed"


def test_live_run_is_not_reaped(database: Database) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        claim = _lost(store, database)
        assert store.heartbeat([claim], lease=30) == {claim: True}
        assert store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10) == []


def test_lost_run_is_requeued_until_its_attempts_are_used_up(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        for attempt in (1, 2):
            _lost(store, database)
            (reaped,) = store.reap(LostRuns.REQUEUE, max_attempts=3, lease=0, batch=10)
            assert reaped.outcome == "requeued"
            run = read_run(database, run_id)
            assert (run["status"], run["payload"]["started_at"]) == ("pending", None)
            assert ledger(database, run_id)["attempts"] == attempt
            assert ledger(database, run_id)["slot"] == "held"
        _lost(store, database)
        (reaped,) = store.reap(LostRuns.REQUEUE, max_attempts=3, lease=0, batch=10)
        assert reaped.outcome == "lost"
    run = read_run(database, run_id)
    assert run["status"] == "failed"
    assert "attempt 3 of 3" in run["payload"]["error"]
    assert audit(run) == ["run_created", *["run_started", "run_requeued"] * 2, "run_started", "run_failed"]


def test_requeued_run_names_the_process_that_was_lost_and_no_other(database: Database) -> None:
    (run_id,) = insert_runs(database)
    lost, other = uuid4(), uuid4()
    for worker, host, pid in ((other, "other", 1), (lost, "lost", 2)):
        execute(
            database,
            "INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency)"
            " VALUES (%s, 'worker', %s, %s, '1', 1)",
            worker,
            host,
            pid,
        )
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=lost, lease=30), Run)
        _expire(database)
        (reaped,) = store.reap(LostRuns.REQUEUE, max_attempts=3, lease=0, batch=10)
        assert reaped.claim == claim
    reason = read_run(database, run_id)["payload"]["audit_log"][-1]["metadata"]["reason"]
    assert reason.endswith(" from lost, process 2, attempt 1 of 3")


def test_lost_run_is_held_for_an_operator(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        _lost(store, database)
        assert store.reap(LostRuns.HOLD, max_attempts=3, lease=0, batch=10) == []
    assert read_run(database, run_id)["status"] == "running"
    assert ledger(database, run_id)["state"] == "running"


@pytest.mark.parametrize("policy", list(LostRuns))
def test_lost_run_that_was_cancelled_stays_cancelled(database: Database, policy: LostRuns) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        _lost(store, database)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", run_id)
        (reaped,) = store.reap(policy, max_attempts=3, lease=0, batch=10)
    assert reaped.outcome == "cancelled"
    assert ledger(database, run_id)["slot"] == "due"


@pytest.mark.parametrize("slot", ["none", "held", "due", "returned"])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("running", "lost"),
        ("cancelled", "cancelled"),
        ("succeeded", "skipped"),
        ("failed", "skipped"),
        ("pending", "skipped"),
    ],
)
def test_lost_run_owes_its_slot_only_if_it_holds_one_and_has_ended(
    database: Database, status: str, outcome: str, slot: str
) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        _lost(store, database)
        execute(
            database,
            "UPDATE workflow_runs SET status = %s, payload = jsonb_set(payload, '{status}', to_jsonb(%s::text))",
            status,
            status,
        )
        execute(database, "UPDATE orcheo_dispatch.dispatch SET slot = %s", slot)
        before = read_run(database, run_id)
        (reaped,) = store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)
    assert reaped.outcome == ledger(database, run_id)["outcome"] == outcome
    owes = slot == "held" and status != "pending"
    assert ledger(database, run_id)["slot"] == ("due" if owes else slot)
    if status != "running":
        assert read_run(database, run_id) == before


def test_reap_passes_over_a_run_that_settles_at_this_moment(database: Database) -> None:
    import psycopg

    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as worker:
        _lost(store, database)
        worker.execute("SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (run_id,))
        assert store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10) == []
        worker.rollback()
        assert len(store.reap(LostRuns.FAIL, max_attempts=3, lease=0, batch=10)) == 1


def test_lapsed_claims_are_found_and_extended(database: Database) -> None:
    insert_runs(database, 2)
    with store_of(database) as (store, _):
        first, second = sorted(claim_all(store))
        assert store.lapsed(batch=10) == {}
        _expire(database)
        assert sorted(store.lapsed(batch=10)) == [first, second]
        store.extend([first], lease=60, reason="waiting")
        assert store.lapsed(batch=10) == {second: Lapsed(None, served=True)}


@pytest.mark.parametrize("step", ["extend", "release"])
def test_lapsed_claim_that_postgres_refuses_to_change_hides_no_other(database: Database, step: str) -> None:
    bad, good = insert_runs(database, 2)
    with store_of(database) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store)}
        _expire(database)
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 h' WHERE run_id = %s",
            bad,
        )
        assert [*store.lapsed(batch=1)] == [claims[bad]]
        refuse(database, bad)
        if step == "extend":
            assert store.extend([claims[bad]], lease=30, reason="queued") == 0
        else:
            assert store.release([claims[bad]], reason="message_lost") == 0
        assert [*store.lapsed(batch=1)] == [claims[good]]


def test_rows_of_deleted_runs_are_settled(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        _lost(store, database)
        execute(database, "DELETE FROM workflow_runs WHERE id = %s", run_id)
        assert store.reap_orphans() == 1
    assert ledger(database, run_id)["reason"] == "run is gone"
