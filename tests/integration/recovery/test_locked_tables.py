"""A table that is locked as a whole: what needs it waits, what does not goes on, and nobody is called lost for it."""

from __future__ import annotations

import threading
import time
from functools import partial

import psycopg
import pytest
import redis

from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.bad_rows import Events, events, locking, refuse
from tests.support.database.databases import Database
from tests.support.database.runs import execute, insert_runs, ledger, settings_for, statuses
from tests.support.processes.dispatchers import dispatcher_of
from tests.support.processes.processes import Stack, until

__all__ = ["events"]
_LEDGER = "orcheo_dispatch.dispatch"
_POLL_SECONDS = 6.0
"""A poll of which each step waits for a lock; without one it takes some 10 ms."""


_dispatcher = partial(dispatcher_of, heartbeat=0.2, worker_lease=1.0, lost_runs="fail")


@pytest.mark.parametrize("table", ["workflow_runs", _LEDGER])
def test_poll_gives_up_and_says_who_holds_the_table(
    database: Database, redis_url: str, events: Events, table: str
) -> None:
    insert_runs(database, 3)
    with _dispatcher(database, redis_url) as dispatcher:
        with locking(database, table) as session:
            for _ in range(2):
                began = time.monotonic()
                report = dispatcher.poller.poll()
                assert time.monotonic() - began < _POLL_SECONDS
                assert {"look", "claim"} <= set(report.failing)
                assert not report.dispatches
                assert report.next_delay is not None
            said = events.of("step_locked")
            assert len(said) == len({line["step"] for line in said}), "each once"
            assert {f"pid {session.info.backend_pid} (alter[bold]ing)" in line["by"] for line in said} == {True}
            assert "AccessExclusiveLock" in said[0]["by"]
            assert "LOCK TABLE" not in str(events.all), "a query is not quoted"
        report = dispatcher.poller.poll()
        assert (report.published, report.failing) == (3, ())
    assert {line["step"] for line in events.of("step_recovered")} == {line["step"] for line in said}
    assert events.of("database_unavailable") == []
    assert events.of("run_refused") == []


def test_alter_that_waits_behind_a_dump_is_named(database: Database, redis_url: str, events: Events) -> None:
    insert_runs(database)
    with (
        _dispatcher(database, redis_url) as dispatcher,
        psycopg.connect(database.dsn, application_name="pg_dump") as dump,
        psycopg.connect(database.dsn, application_name="alembic") as alter,
    ):
        dump.execute("SELECT FROM workflow_runs LIMIT 1")
        waiting = threading.Thread(target=alter.execute, args=("ALTER TABLE workflow_runs ADD COLUMN extra text",))
        waiting.start()
        until(lambda: _awaits(database, alter.info.backend_pid), what="the ALTER TABLE waits")
        assert "claim" in dispatcher.poller.poll().failing
        dump.rollback()
        waiting.join()
        alter.rollback()
        assert dispatcher.poller.poll().published == 1
    assert any("(alembic) waits for AccessExclusiveLock" in line["by"] for line in events.of("step_locked"))


def _awaits(database: Database, pid: int) -> bool:
    with psycopg.connect(database.dsn) as connection:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
        return connection.execute(query, (pid,)).fetchone() == (True,)


def test_locked_list_of_processes_holds_up_no_message(database: Database, redis_url: str) -> None:
    insert_runs(database, 20)
    with (
        _dispatcher(database, redis_url) as dispatcher,
        locking(database, "orcheo_dispatch.process"),
        redis.Redis.from_url(redis_url) as client,
    ):
        began = time.monotonic()
        assert dispatcher.poller.poll().published == 20
        assert time.monotonic() - began < 4
        assert client.llen(find_installation(settings_for(database, redis_url)).runs) > 0


def test_locked_list_of_processes_holds_up_no_run_of_a_named_queue(database: Database, redis_url: str) -> None:
    """Claims and the reconciliation use the queues that were consumed when the list could last be read."""
    insert_runs(database, 20)
    with _dispatcher(database, redis_url) as dispatcher:
        Policies(dispatcher.engine).set(ALL, {"queue": "gpu"}, Author("ada", Interface.COMMAND))
        assert dispatcher.poller.poll().published == 0
        Process(ProcessKind.WORKER, queues=("gpu",)).seen(dispatcher.engine)
        assert dispatcher.poller.poll().published == 20
        with locking(database, "orcheo_dispatch.process"):
            insert_runs(database, 20)
            began = time.monotonic()
            assert dispatcher.poller.poll().published == 20
            execute(database, f"UPDATE {_LEDGER} SET lease_expires_at = now() - interval '1 s'")
            report = dispatcher.poller.poll()
            assert (report.extended, report.released, report.failing) == (40, 0, ())
            assert time.monotonic() - began < 4


@pytest.mark.parametrize("table", ["orcheo_dispatch.ended", "orcheo_dispatch.process", "execution_history"])
def test_step_of_the_upkeep_that_is_locked_out_is_passed_over(database: Database, redis_url: str, table: str) -> None:
    ids = insert_runs(database, 2)
    with _dispatcher(database, redis_url) as dispatcher:
        assert dispatcher.poller.poll().published == 2
        execute(database, f"UPDATE {_LEDGER} SET lease_expires_at = now() - interval '1 s'")
        execute(database, "DELETE FROM workflow_runs")
        dispatcher.upkeep.polled()
        dispatcher.upkeep.reaped(ids)
        with locking(database, table):
            dispatcher.upkeep.once()
    assert {ledger(database, run_id)["reason"] for run_id in ids} == {"run is gone"}


def test_claims_do_not_wait_for_an_upkeep_that_is_held_up(database: Database, stack: Stack) -> None:
    """A real dispatcher, whose slots are counted by a Redis that hangs, and which cannot say that it is alive."""
    with stack.running("dispatcher") as process:
        process.saw("dispatcher_started")
        with locking(database, "orcheo_dispatch.process"), locking(database, "orcheo_dispatch.ended"):
            insert_runs(database, 1)
            for _ in range(5):
                ids = insert_runs(database, 1)
                until(partial(_is_published, database, ids[0]), what="the run is published", seconds=5)


def _is_published(database: Database, run_id: str) -> bool:
    return _state(database, run_id) == "published"


def _state(database: Database, run_id: str) -> str | None:
    try:
        state: str = ledger(database, run_id)["state"]
    except AssertionError:
        return None
    return state


def _lose(database: Database, ago: str = "1 ms") -> None:
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET state = 'running', begun_at = now(), worker_id = gen_random_uuid(),"
        f" attempts = 1, lease_expires_at = now() - interval '{ago}', heartbeat_at = now()",
    )
    execute(
        database,
        "UPDATE workflow_runs SET status = 'running', payload = payload || '{\"status\": \"running\"}'",
    )


@pytest.mark.parametrize("table", ["workflow_runs", _LEDGER])
def test_nobody_is_lost_at_once_after_a_lock(database: Database, redis_url: str, table: str) -> None:
    """The lock is held for less than a lease: heartbeats that it held up must come before the reaper all the same."""
    insert_runs(database)
    with _dispatcher(database, redis_url, worker_lease=30, heartbeat=1.0) as dispatcher:
        dispatcher.poller.poll()
        with locking(database, table):
            assert "look" in dispatcher.poller.poll().failing
        _lose(database)
        report = dispatcher.poller.poll()
        assert (report.lost, statuses(database)) == (0, {"running"})
        assert report.next_delay is not None
        assert 0 < report.next_delay <= 2.0


def test_poller_that_was_held_up_for_a_lease_reaps_nobody_at_first(database: Database, redis_url: str) -> None:
    insert_runs(database)
    with _dispatcher(database, redis_url) as dispatcher:
        dispatcher.poller.poll()
        _lose(database)
        # Stopped by SIGSTOP, say, or with its host: a second of this is a lease.
        until(lambda: _age(database) > 1.2, what="a lease has passed")
        report = dispatcher.poller.poll()
        assert (report.lost, statuses(database)) == (0, {"running"})
        assert report.next_delay is not None
        assert 0 < report.next_delay <= 0.41
        until(lambda: dispatcher.poller.poll().lost == 1, what="the run is reaped", seconds=5)


def _age(database: Database) -> float:
    with psycopg.connect(database.dsn) as connection:
        row = connection.execute(f"SELECT EXTRACT(epoch FROM now() - max(begun_at))::float8 FROM {_LEDGER}").fetchone()
    assert row is not None
    age: float = row[0]
    return age


def test_push_that_is_refused_does_not_stop_the_others(database: Database, stack: Stack, redis_url: str) -> None:
    from celery import Celery

    from orcheo_dispatch.dispatcher.wakeups.hints import RUN_HINT
    from tests.support.database.runs import WORKSPACE_ID

    ids = insert_runs(database, 3, triggered_by="a label of its own")
    refuse(database, ids[0], state="08006")
    with stack.running("dispatcher") as process, Celery(broker=redis_url, set_as_current=False) as app:
        for run_id in ids:
            app.send_task(RUN_HINT, args=[run_id], headers={"workspace_id": WORKSPACE_ID}, queue="celery")
        until(lambda: [_state(database, run_id) for run_id in ids[1:]] == ["published"] * 2, what="two are claimed")
        process.saw("run_refused")
        with redis.Redis.from_url(redis_url) as client:
            until(lambda: client.llen("celery") == 0, what="all pushes were answered")
