"""What the views say, of runs whose story is known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from orcheo_dispatch.shared.ledger.model import Claim, Outcome, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.runs import WORKFLOW_ID, claim_all, everything, execute, insert_runs, one, store_of
from tests.support.database.views import views_of

_PRIVATE = "hunter2"
_VERSIONS = Path(__file__).parents[3] / "shared" / "schema" / "migrations" / "versions"
_FILES = [
    _VERSIONS / name
    for name in ("0002_views.sql", "0004_whose_runs.sql", "0005_isolation.sql", Path("..", "..", "views.sql"))
]


def _view(database: Database, name: str) -> list[dict[str, Any]]:
    return everything(database, f"SELECT * FROM orcheo_dispatch.{name}")


def _run_all(store: Store, endings: list[Ending], *, worker_id: UUID | None = None) -> list[Claim]:
    """Claim, begin and settle a run for each ending, the oldest run first."""
    claims = claim_all(store, len(endings))
    for claim, ending in zip(claims, endings, strict=True):
        store.begin(claim, worker_id=worker_id or uuid4(), lease=30)
        store.settle(claim, ending)
    return claims


_FAILED = Ending.failed(f"the password is {_PRIVATE}", reason="ValueError")
_TIMED_OUT = Ending.failed("Run timed out after 1 s.", reason="timed_out", outcome=Outcome.TIMED_OUT)


def test_pending_views_tell_ours_from_others_by_what_dispatchers_take(database: Database) -> None:
    runs = insert_runs(database, 4)
    insert_runs(database, 2, triggered_by="chatkit")
    insert_runs(database, 1, triggered_by="nightly")
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '301 s' WHERE id = %s", runs[2])
    (kpi,) = _view(database, "pending_kpi")
    assert (kpi["pending"], kpi["late"], kpi["late_share"]) == (4, 1, 0.25)
    assert 301 <= kpi["oldest_seconds"] < 360
    (ages,) = _view(database, "pending_ages")
    assert ages["pending"] == 4
    assert ages["p50_seconds"] < ages["p90_seconds"] == ages["max_seconds"]
    assert ages["max_seconds"] > 301
    by_trigger = {
        row["triggered_by"]: (row["ours"], row["pending"], row["late"]) for row in _view(database, "pending_by_trigger")
    }
    assert by_trigger == {"webhook": (True, 4, 1), "chatkit": (False, 2, 0), "nightly": (False, 1, 0)}
    with store_of(database) as (store, engine):
        Process(ProcessKind.DISPATCHER, triggers=("webhook", "nightly")).seen(engine)
        assert _view(database, "pending_kpi")[0]["pending"] == 5
        Process(ProcessKind.DISPATCHER, triggers=("*",)).seen(engine)
        assert _view(database, "pending_kpi")[0]["pending"] == 7
        claim_all(store, 1)
    claims = {row["run_id"]: row["claim"] for row in _view(database, "pending_runs")}
    assert len(claims) == 7
    assert claims[runs[2]] == "claimed"


def test_ended_runs_are_counted_alike_before_and_after_a_dispatcher_counted_them(database: Database) -> None:
    insert_runs(database, 7)
    with store_of(database) as (store, _):
        endings = [Ending.succeeded("{}"), Ending.succeeded("{}"), _FAILED, _TIMED_OUT, Ending.requeued("drained")]
        claims = _run_all(store, endings)
        for minutes, claim in enumerate(claims[:3]):
            execute(
                database,
                "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - make_interval(mins => %s) WHERE run_id = %s",
                10 * minutes + 5,
                claim.run_id,
            )
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - interval '3 minutes' WHERE run_id = ANY (%s)",
            [claim.run_id for claim in claims[3:]],
        )
        before = [sorted(map(str, _view(database, view))) for view in ("ended_by_minute", "throughput")]
        store.count_ended()
        store.count_ended()
        assert len(everything(database, "SELECT * FROM orcheo_dispatch.ended")) == 5
        assert [sorted(map(str, _view(database, view))) for view in ("ended_by_minute", "throughput")] == before
    throughput = _view(database, "throughput")
    assert len(throughput) == 60
    totals = {name: sum(row[name] for row in throughput) for name in ("ended", "succeeded", "failed", "cancelled")}
    assert totals == {"ended": 4, "succeeded": 2, "failed": 2, "cancelled": 0}
    by_status: dict[str, int] = {}
    for row in _view(database, "runs_by_hour"):
        by_status[row["status"]] = by_status.get(row["status"], 0) + row["runs"]
    assert by_status == {"succeeded": 2, "failed": 2, "pending": 3}


def test_what_is_under_way_in_this_minute_is_not_counted_for_good(database: Database) -> None:
    insert_runs(database, 1)
    with store_of(database) as (store, _):
        _run_all(store, [Ending.succeeded("{}")])
        store.count_ended()
    assert everything(database, "SELECT * FROM orcheo_dispatch.ended") == []
    (row,) = _view(database, "ended_by_minute")
    assert (row["outcome"], row["runs"]) == ("succeeded", 1)


def test_count_catches_up_in_steps_and_across_gaps(database: Database) -> None:
    insert_runs(database, 3)
    with store_of(database) as (store, _):
        for hours, claim in enumerate(_run_all(store, [Ending.succeeded("{}")] * 3)):
            execute(
                database,
                "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - make_interval(hours => %s) WHERE run_id = %s",
                20 * hours + 20,
                claim.run_id,
            )
        for counted in (1, 2, 3, 3):
            store.count_ended()
            assert one(database, "SELECT count(*) FROM orcheo_dispatch.ended")["count"] == counted


def test_dispatchers_that_count_at_once_count_once(database: Database) -> None:
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, slot,"
        " claimed_at, settled_at, dispatcher_id) SELECT n, 'w', 'webhook', 'settled',"
        " (ARRAY['succeeded', 'failed', 'lost'])[1 + n %% 3], 1, 'none', now(),"
        " now() - make_interval(secs => 180 + n), gen_random_uuid() FROM generate_series(1, %s) AS n",
        20_000,
    )
    start = threading.Barrier(4)

    def count() -> None:
        with store_of(database, connections=1) as (store, _):
            start.wait()
            store.count_ended()

    with ThreadPoolExecutor(4) as threads:
        for counted in [threads.submit(count) for _ in range(4)]:
            counted.result()
    assert one(database, "SELECT sum(runs) AS runs FROM orcheo_dispatch.ended")["runs"] == 20_000


def test_latencies_are_told_by_workflow(database: Database) -> None:
    insert_runs(database, 3)
    with store_of(database) as (store, _):
        _run_all(store, [Ending.succeeded("{}"), Ending.succeeded("{}"), _FAILED])
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET created_at = now() - interval '100 s',"
        " claimed_at = now() - interval '90 s', begun_at = now() - interval '60 s', settled_at = now()",
    )
    (row,) = _view(database, "workflow_latencies")
    assert (row["workflow_id"], row["runs"], row["failed"]) == (WORKFLOW_ID, 3, 1)
    found = [row[f"{name}_p95_seconds"] for name in ("pending", "queued", "running", "total")]
    assert found == [10, 30, 60, 100]
    (slowest,) = _view(database, "slowest_workflows")
    assert (slowest["workflow_id"], slowest["running_p50_seconds"]) == (WORKFLOW_ID, 60)
    (settled, *_) = _view(database, "settled_runs")
    assert [settled[f"{name}_seconds"] for name in ("pending", "queued", "running", "total")] == [10, 30, 60, 100]


def test_failures_are_told_by_class_and_never_by_text(database: Database) -> None:
    insert_runs(database, 5)
    with store_of(database) as (store, _):
        _run_all(store, [_FAILED, _FAILED, _TIMED_OUT, Ending.succeeded(f'{{"secret": "{_PRIVATE}"}}')])
    found = {(row["outcome"], row["error_class"]): row["runs"] for row in _view(database, "failures")}
    assert found == {("failed", "ValueError"): 2, ("timed_out", "timed_out"): 1}
    shown = {name: everything(database, f"SELECT * FROM {name}") for name in views_of(database)}
    assert _PRIVATE in str(everything(database, "SELECT payload FROM workflow_runs"))
    assert [name for name, rows in shown.items() if _PRIVATE in str(rows)] == []


def test_stuck_lost_and_foreign_runs_are_listed(database: Database) -> None:
    stuck, lost, foreign, ended = insert_runs(database, 4)
    worker = uuid4()
    with store_of(database) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store, 2)}
        for claim in claims.values():
            store.begin(claim, worker_id=worker, lease=30)
        store.settle(claims[lost], Ending.failed("lost", reason="worker_lost", outcome=Outcome.LOST))
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '9 s' WHERE run_id = %s",
            stuck,
        )
        execute(database, "UPDATE workflow_runs SET status = 'running' WHERE id = %s", foreign)
        execute(database, "UPDATE workflow_runs SET status = 'succeeded' WHERE id = %s", ended)
    (row,) = _view(database, "stuck_runs")
    assert (row["run_id"], row["worker_id"]) == (stuck, worker)
    assert 9 <= row["overdue_seconds"] < 60
    (row,) = _view(database, "lost_runs")
    assert (row["run_id"], row["outcome"], row["reason"]) == (lost, "lost", "worker_lost")
    (row,) = _view(database, "running_elsewhere")
    assert row["run_id"] == foreign


def test_processes_and_queue_are_told(database: Database) -> None:
    insert_runs(database, 5)
    alive, vanished, beat = (
        Process(ProcessKind.WORKER, concurrency=4),
        Process(ProcessKind.WORKER),
        Process(ProcessKind.BEAT),
    )
    with store_of(database) as (store, engine):
        for process in (alive, vanished, beat):
            process.seen(engine)
        execute(
            database,
            "UPDATE orcheo_dispatch.process SET seen_at = now() - interval '1 minute' WHERE id = ANY (%s)",
            [vanished.id, beat.id],
        )
        claims = claim_all(store, 3)
        store.mark_published(claims[:2])
        store.begin(claims[0], worker_id=alive.id, lease=30)
    found = {row["id"]: (row["alive"], row["vanished"]) for row in _view(database, "processes")}
    assert found == {alive.id: (True, False), vanished.id: (False, True), beat.id: (False, False)}
    (row,) = _view(database, "queue_and_backlog")
    assert row == {
        "backlog": 4,
        "unclaimed": 2,
        "claimed": 1,
        "published": 1,
        "running": 1,
        "stuck": 0,
        "workers": 1,
        "capacity": 4,
        "slots_due": 0,
    }


def test_every_view_and_column_is_documented(database: Database) -> None:
    undocumented = everything(
        database,
        "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum >= 0"
        " WHERE c.relkind = 'v' AND c.relnamespace = 'orcheo_dispatch'::regnamespace"
        "   AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)",
    )
    assert undocumented == []


def test_views_that_were_dropped_come_back_by_their_file(database: Database) -> None:
    views = views_of(database)
    insert_runs(database)
    execute(
        database,
        "DROP VIEW orcheo_dispatch.pending_runs, orcheo_dispatch.running_elsewhere,"
        " orcheo_dispatch.begun_elsewhere CASCADE",
    )
    assert views_of(database) < views
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        for _ in range(2):
            for file in _FILES:
                owner.execute(file.read_text())
    assert views_of(database) == views
    assert everything(database.seen_by(Kind.DASHBOARD), "SELECT pending FROM orcheo_dispatch.pending_kpi") == [
        {"pending": 1}
    ]
