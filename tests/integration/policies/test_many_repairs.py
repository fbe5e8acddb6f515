"""Repairs of many runs: which runs a filter chooses, what is refused, and what the log of operations says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface, Operation, list_operations
from orcheo_dispatch.shared.ledger.operators.repairs import BATCH, LOCKED, Repair, repair, repair_all
from orcheo_dispatch.shared.ledger.operators.selection import Action, Selection, choose, count
from tests.support.database.databases import Database
from tests.support.database.refusals import held, meddle
from tests.support.database.runs import WORKFLOW_ID, everything, execute, insert_runs, one, store_of

ADA = Author("ada", Interface.COMMAND, why="after the outage")
FAILED = Selection(status=("failed",))
ODD = "O'Brien \"; DROP TABLE x; -- ünï \\ 1%"


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """Connections to the test's own database."""
    with store_of(database) as (_, engine):
        yield engine


def _fail(database: Database, runs: Sequence[str], *, reason: str = "ValueError") -> None:
    """Have these runs end as failed, as a worker would."""
    execute(
        database,
        "UPDATE workflow_runs SET status = 'failed', payload = payload || '{\"status\": \"failed\"}'"
        " WHERE id = ANY (%s)",
        list(runs),
    )
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence,"
        " slot, claimed_at, settled_at, dispatcher_id, reason)"
        " SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, 'settled', 'failed', 1, 'none', now(), now(),"
        " gen_random_uuid(), %s FROM workflow_runs AS r WHERE r.id = ANY (%s)",
        reason,
        list(runs),
    )


def _statuses(database: Database) -> dict[str, int]:
    return {
        row["status"]: row["runs"]
        for row in everything(database, "SELECT status, count(*) AS runs FROM workflow_runs GROUP BY 1")
    }


def _log(engine: Engine) -> list[Operation]:
    return list_operations(engine, limit=1000)[::-1]


def test_five_thousand_failed_runs_are_requeued_in_seconds_and_recorded_per_batch(
    database: Database, engine: Engine
) -> None:
    _fail(database, insert_runs(database, 5000))
    seen: list[int] = []
    began = time.monotonic()
    done = repair_all(engine, Selection(), Action.REQUEUE, ADA, on_progress=lambda runs: seen.append(len(runs)))
    took = time.monotonic() - began
    print(f"requeued 5,000 runs in {took:.1f} s")
    assert took < 30
    assert len(done) == sum(seen) == 5000
    assert not any(each.refused for each in done)
    assert _statuses(database) == {"pending": 5000}
    entries = _log(engine)
    assert [entry.changed for entry in entries] == [BATCH] * 50
    assert {run_id for entry in entries for run_id in entry.run_ids} == {each.run_id for each in done}
    assert {(entry.by, entry.interface, entry.action, entry.why) for entry in entries} == {
        ("ada", "command", "requeue", "after the outage")
    }
    assert entries[0].details == {"status": ["failed"]}
    assert entries[0].workflow_id == WORKFLOW_ID


def test_filters_combine(database: Database, engine: Engine) -> None:
    runs = insert_runs(database, 6)
    _fail(database, runs[:4], reason="ValueError")
    _fail(database, runs[4:5], reason=ODD)
    execute(database, "UPDATE workflow_runs SET workspace_id = %s WHERE id = ANY (%s)", ODD, runs[1:4])
    execute(database, "UPDATE workflow_runs SET workflow_id = %s WHERE id = ANY (%s)", ODD, runs[2:4])
    old = datetime.now(UTC) - timedelta(days=2)
    execute(database, "UPDATE workflow_runs SET created_at = %s WHERE id = %s", old, runs[3])
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at) VALUES (%s, 1, now() + interval '1 hour')",
        runs[0],
    )

    def found(**given: object) -> set[int]:
        selection = Selection(**given)  # type: ignore[arg-type]
        chosen = choose(engine, selection)
        assert count(engine, selection) == len(chosen)
        return {runs.index(run_id) for run_id in chosen}

    assert found() == {0, 1, 2, 3, 4, 5}
    assert found(status=("failed",)) == {0, 1, 2, 3, 4}
    assert found(status=("failed", "pending"), workspace=ODD) == {1, 2, 3}
    assert found(workspace=ODD, workflow=ODD) == {2, 3}
    assert found(workspace=ODD, workflow=ODD, since=3600.0) == {2}
    assert found(workflow=ODD, since=old - timedelta(hours=1)) == {2, 3}
    assert found(workflow=ODD, older_than=86_400.0) == {3}
    assert found(reason=ODD) == {4}
    assert found(dead=True) == {1, 2, 3, 4}
    assert found(dead=True, workflow=WORKFLOW_ID, reason="ValueError") == {1}
    assert found(reason="100%") == set()


def test_pages_follow_each_other(database: Database, engine: Engine) -> None:
    runs = sorted(insert_runs(database, 7))
    assert choose(engine, Selection(), 3) == runs[:3]
    assert choose(engine, Selection(), 3, runs[2]) == runs[3:6]
    assert choose(engine, Selection(), 3, runs[6]) == []


def test_two_operators_on_the_same_filter_change_each_run_once(database: Database, engine: Engine) -> None:
    _fail(database, insert_runs(database, 600))
    with store_of(database) as (_, other):
        done: dict[str, list[Repair]] = {}

        def act(name: str, connections: Engine) -> None:
            done[name] = repair_all(connections, FAILED, Action.REQUEUE, Author(name, Interface.PAGE))

        both = [threading.Thread(target=act, args=each) for each in (("ada", engine), ("bob", other))]
        for each in both:
            each.start()
        for each in both:
            each.join(60)
    changed = [each.run_id for runs in done.values() for each in runs if not each.refused]
    assert len(changed) == len(set(changed)) == 600
    assert sum(entry.changed for entry in _log(engine)) == 600
    refused = {each.refused for runs in done.values() for each in runs if each.refused}
    assert refused <= {"run is pending already"}
    requeued = "SELECT count(*) AS n FROM workflow_runs, jsonb_path_query(payload, '$.audit_log[*].action') AS a"
    assert one(database, requeued + " WHERE a = '\"run_requeued\"'")["n"] == 600


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch"])
def test_a_locked_run_is_reported_and_does_not_stop_the_others(database: Database, engine: Engine, table: str) -> None:
    runs = insert_runs(database, 5)
    _fail(database, runs)
    with held(database, runs[2], table):
        done = {each.run_id: each for each in repair_all(engine, FAILED, Action.REQUEUE, ADA)}
    assert done[runs[2]].refused == LOCKED
    assert [done[run_id].status_after for run_id in runs if run_id != runs[2]] == ["pending"] * 4
    assert _statuses(database) == {"pending": 4, "failed": 1}
    assert [(entry.changed, entry.refused) for entry in _log(engine)] == [(4, 0), (0, 1)]


def test_a_run_whose_lock_is_released_meanwhile_is_changed(database: Database, engine: Engine) -> None:
    runs = insert_runs(database, 3)
    _fail(database, runs)
    batches: list[int] = []
    with held(database, runs[1]) as holder:

        def release(done: Sequence[Repair]) -> None:
            batches.append(len(done))
            holder.rollback()

        done = repair(engine, runs, Action.REQUEUE, ADA, on_progress=release)
    assert [each.run_id for each in done] == runs
    assert {each.status_after for each in done} == {"pending"}
    assert batches == [2, 1]


@pytest.mark.parametrize("state", ["P0001", "57014", "53300", "40001", "23514"])
def test_a_run_that_postgres_refuses_does_not_stop_the_others(database: Database, engine: Engine, state: str) -> None:
    runs = insert_runs(database, 150)
    _fail(database, runs)
    meddle(database, runs[7], condition="NEW.status = 'pending'", state=state)
    done = {each.run_id: each for each in repair_all(engine, FAILED, Action.REQUEUE, ADA)}
    refused = done.pop(runs[7]).refused
    assert refused is not None
    assert refused.startswith("Postgres refuses it: ")
    assert "refused for" not in refused
    assert not any(each.refused for each in done.values())
    assert _statuses(database) == {"pending": 149, "failed": 1}
    entries = _log(engine)
    assert sum(entry.changed for entry in entries) == 149
    assert sum(entry.refused for entry in entries) == 1


def test_a_batch_is_recorded_only_if_its_changes_are_committed(database: Database, engine: Engine) -> None:
    runs = insert_runs(database, 250)
    _fail(database, runs)

    class StoppedError(Exception):
        pass

    def stop(_done: Sequence[Repair]) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        repair_all(engine, FAILED, Action.REQUEUE, ADA, on_progress=stop)
    assert _statuses(database) == {"pending": BATCH, "failed": 150}
    assert [entry.changed for entry in _log(engine)] == [BATCH]


def test_refusals_are_counted_and_a_dry_run_is_not_recorded(database: Database, engine: Engine) -> None:
    (run_id,) = insert_runs(database)
    unknown = str(uuid4())
    assert [each.refused for each in repair(engine, [run_id, unknown], Action.REQUEUE, ADA, dry_run=True)] == [
        "run is pending already",
        "there is no such run",
    ]
    assert _log(engine) == []
    repair(engine, [unknown, run_id], Action.CANCEL, ADA)
    (entry,) = _log(engine)
    assert (entry.action, entry.run_ids, entry.changed, entry.refused) == ("cancel", [run_id], 1, 1)


def test_limit_bounds_how_many_are_changed(database: Database, engine: Engine) -> None:
    _fail(database, insert_runs(database, 20))
    assert len(repair_all(engine, FAILED, Action.FAIL, ADA, limit=7, dry_run=True)) == 7
    assert len(repair_all(engine, FAILED, Action.REQUEUE, ADA, limit=7)) == 7
    assert _statuses(database) == {"pending": 7, "failed": 13}


def test_a_requeue_by_filter_leaves_cancelled_and_succeeded_runs_alone(database: Database, engine: Engine) -> None:
    runs = insert_runs(database, 4)
    _fail(database, runs[:1])
    execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", runs[1])
    execute(database, "UPDATE workflow_runs SET status = 'succeeded' WHERE id = %s", runs[2])
    assert [each.run_id for each in repair_all(engine, Selection(), Action.REQUEUE, ADA)] == runs[:1]
    done = repair_all(engine, Selection(status=("cancelled",)), Action.REQUEUE, ADA)
    assert [each.run_id for each in done] == runs[1:2]
