"""How many workers the view and the metric ask for, in situations that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml

from orcheo_dispatch.shared.ledger.model import Outcome, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.status import count_wanted_workers
from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.run_states import Entry, State, write
from tests.support.database.runs import claim_all, execute, insert_runs, one, store_of

ROOT = Path(__file__).parents[3]

_FAILED = Ending.failed("x", reason="ValueError", outcome=Outcome.FAILED)


def _wanted(database: Database) -> dict[str, Any]:
    return one(database, "SELECT * FROM orcheo_dispatch.wanted_workers")


def _wanted_for(database: Database, target_delay: float, concurrency: int | None = None) -> int:
    row = one(database, "SELECT workers FROM orcheo_dispatch.wanted_workers_for(%s, %s)", target_delay, concurrency)
    workers: int = row["workers"]
    return workers


def _ended(database: Database, runs: int, *, seconds: float, ago: float = 60) -> None:
    """Leave so many runs that took so many seconds and ended so long ago."""
    insert_runs(database, runs)
    with store_of(database) as (store, _):
        claims = claim_all(store, runs)
        for claim in claims:
            assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
            store.settle(claim, Ending.succeeded("{}"))
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - make_interval(secs => %s),"
        " begun_at = now() - make_interval(secs => %s) WHERE run_id = ANY (%s)",
        ago,
        ago + seconds,
        [claim.run_id for claim in claims],
    )


def _running(database: Database, runs: int) -> None:
    insert_runs(database, runs)
    with store_of(database) as (store, _):
        for claim in claim_all(store, runs):
            assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)


def _workers(database: Database, *concurrency: int) -> None:
    with store_of(database) as (_, engine):
        for each in concurrency:
            Process(ProcessKind.WORKER, concurrency=each).seen(engine)


def test_idle_system_wants_none(database: Database) -> None:
    _ended(database, 3, seconds=5)
    _workers(database, 32)
    row = _wanted(database)
    assert (row["workers"], row["backlog"], row["running"], row["retries_due"]) == (0, 0, 0, 0)
    assert row["run_seconds"] == pytest.approx(5)


def test_runs_that_have_not_ended_hide_none_that_have(database: Database) -> None:
    _ended(database, 3, seconds=5)
    with store_of(database) as (_, engine), engine.begin() as connection:
        # More than are read, and without a time of their end.
        write(connection, [State(f"r{n}", None, entry=Entry("claimed", lease=30)) for n in range(2001)])
    assert _wanted(database)["run_seconds"] == pytest.approx(5)


def test_one_short_pending_run_wants_one(database: Database) -> None:
    _ended(database, 3, seconds=0.001)
    insert_runs(database, 1)
    assert _wanted(database)["workers"] == 1
    # However short runs are, and however long they may wait.
    assert _wanted_for(database, 1e9) == 1
    execute(database, "UPDATE orcheo_dispatch.dispatch SET begun_at = settled_at")
    assert _wanted(database)["workers"] == 1


def test_overload_wants_as_many_as_work_it_off_in_the_target_delay(database: Database) -> None:
    """The example of docs/scaling.md, a hundredth of it."""
    _ended(database, 10, seconds=12)
    _workers(database, 8, 8)
    _running(database, 16)
    insert_runs(database, 500)
    row = _wanted(database)
    # 16 + 500 * 12 / 60 = 116 places, of which a worker has 8.
    assert (row["backlog"], row["running"], row["runs_per_worker"], row["target_delay_seconds"]) == (500, 16, 8, 60)
    assert row["workers"] == math.ceil(116 / 8) == 15
    # Half the delay takes twice the places for the backlog; larger workers are fewer.
    assert _wanted_for(database, 30) == math.ceil((16 + 200) / 8)
    assert _wanted_for(database, 60, 32) == math.ceil(116 / 32)


def test_claimed_and_published_runs_are_counted_once(database: Database) -> None:
    _ended(database, 3, seconds=60)
    insert_runs(database, 10)
    with store_of(database) as (store, _):
        claims = claim_all(store, 6)
        store.mark_published(claims[:3])
    row = _wanted(database)
    assert row["backlog"] == 10
    assert _wanted_for(database, 60, 1) == 10


def test_without_a_history_each_run_takes_a_place(database: Database) -> None:
    insert_runs(database, 40)
    row = _wanted(database)
    assert (row["run_seconds"], row["runs_per_worker"]) == (None, 32)
    assert row["workers"] == 2
    _workers(database, 4, 16)
    assert _wanted(database)["workers"] == 4


def test_history_is_that_of_the_last_hour_if_there_is_one(database: Database) -> None:
    _ended(database, 5, seconds=600, ago=7200)
    insert_runs(database, 100)
    assert _wanted(database)["run_seconds"] == pytest.approx(600)
    assert _wanted_for(database, 60, 1) == 100
    with store_of(database) as (store, _):
        (claim,) = claim_all(store, 1)
        store.begin(claim, worker_id=uuid4(), lease=30)
        store.settle(claim, _FAILED)
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET begun_at = settled_at - interval '6 s' WHERE run_id = %s",
        claim.run_id,
    )
    assert _wanted(database)["run_seconds"] == pytest.approx(6)
    assert _wanted_for(database, 60, 1) == math.ceil(99 * 6 / 60)


def test_one_long_run_takes_one_place(database: Database) -> None:
    _ended(database, 20, seconds=1)
    _running(database, 1)
    execute(database, "UPDATE orcheo_dispatch.dispatch SET begun_at = now() - interval '3 h' WHERE state = 'running'")
    assert _wanted(database)["workers"] == 1
    insert_runs(database, 120)
    # 1 + 120 * 1 / 60
    assert _wanted_for(database, 60, 1) == 3


def test_long_runs_never_want_more_places_than_there_are_runs(database: Database) -> None:
    _ended(database, 2, seconds=7200)
    insert_runs(database, 10)
    assert _wanted_for(database, 60, 1) == 10
    assert _wanted_for(database, 1, 1) == 10
    assert _wanted_for(database, 0, 1) == 10


def test_run_that_waits_for_an_answer_wants_no_worker(database: Database) -> None:
    _running(database, 3)
    assert _wanted_for(database, 60, 1) == 3
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET state = 'settled', outcome = 'requeued', settled_at = now(),"
        " lease_expires_at = NULL",
    )
    execute(
        database,
        "INSERT INTO orcheo_dispatch.question (run_id, checkpoint_id, interrupts)"
        " SELECT run_id, 'c', 1 FROM orcheo_dispatch.dispatch",
    )
    assert len(one(database, "SELECT array_agg(run_id) AS runs FROM orcheo_dispatch.waiting_runs")["runs"]) == 3
    assert _wanted(database)["workers"] == 0


def test_retries_count_when_they_are_due(database: Database) -> None:
    _ended(database, 2, seconds=60)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at)"
        " SELECT run_id, 1, now() + make_interval(secs => 1800 * row_number() OVER () - 1770)"
        "   FROM orcheo_dispatch.dispatch",
    )
    row = _wanted(database)
    assert (row["retries_due"], row["workers"]) == (1, 1)
    assert _wanted_for(database, 3600, 1) == 1
    assert _wanted_for(database, 20, 1) == 0


def test_runs_of_others_and_workers_that_are_gone_do_not_count(database: Database) -> None:
    insert_runs(database, 50, triggered_by="chatkit")
    _workers(database, 1)
    execute(database, "UPDATE orcheo_dispatch.process SET seen_at = now() - interval '10 min'")
    row = _wanted(database)
    assert (row["workers"], row["backlog"], row["runs_per_worker"]) == (0, 0, 32)


def test_metric_is_left_out_before_migrate_has_made_the_function(database: Database) -> None:
    insert_runs(database, 3)
    with store_of(database) as (_, engine), engine.connect() as connection:
        assert count_wanted_workers(connection, 60) == 1
    execute(database, "DROP FUNCTION orcheo_dispatch.wanted_workers_for CASCADE")
    with store_of(database) as (_, engine), engine.connect() as connection:
        assert count_wanted_workers(connection, 60) is None


def test_query_of_keda_answers_with_the_rights_of_a_dashboard(database: Database) -> None:
    found = yaml.safe_load_all((ROOT / "ops/kubernetes/overlays/keda/scaledobject.yaml").read_text(encoding="utf-8"))
    (scaled,) = [each for each in found if each["kind"] == "ScaledObject"]
    insert_runs(database, 70)
    with psycopg.connect(database.dsn_of(Kind.DASHBOARD), autocommit=True) as connection:
        for trigger in scaled["spec"]["triggers"]:
            assert connection.execute(trigger["metadata"]["query"]).fetchall() == [(3,)]
