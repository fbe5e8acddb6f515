"""Postgres is there and takes no writes: a failover has made it a replica, or is about to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.errors import DatabaseError
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.runs import execute, insert_runs, read_run, settings_for, times_claimed
from tests.support.processes.processes import Stack, until


@pytest.fixture
def private(postgres_server: EmbeddedPostgres, redis_url: str) -> Iterator[Database]:
    """A database on a server of the test's own."""
    made = Database("postgres", postgres_server.url)
    make_orcheo_tables(made, redis_url)
    migrate(made)
    yield made
    _set_read_only(made, False)


def _set_read_only(database: Database, on: bool) -> None:
    execute(database, f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
    execute(database, "SELECT pg_reload_conf()")


def test_read_only_server_is_noticed_and_outcomes_are_kept(private: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(private, redis_url, tmp_path / "effects")
    (run_id,) = insert_runs(private, inputs={"do": "wait", "seconds": 3})
    with (
        stack.running("worker", ORCHEO_WORKER_LEASE="60") as worker,
        stack.running("dispatcher", ORCHEO_WORKER_LEASE="60") as dispatcher,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        _set_read_only(private, True)
        dispatcher.saw("database_unavailable")
        worker.saw("heartbeat_failed")
        worker.saw("settle_waits_for_database")
        assert "read-only" in dispatcher.log
        assert read_run(private, run_id)["status"] == "running"
        _set_read_only(private, False)
        until(lambda: read_run(private, run_id)["status"] == "succeeded", what="the outcome is written", seconds=15)
        dispatcher.saw("database_reconnected")
        worker.saw("heartbeat_recovered")
        assert dispatcher.log.count("database_unavailable") == 1
    assert stack.noted("begun") == [run_id]


def test_idle_dispatcher_notices_read_only_server_by_its_next_poll(private: Database, redis_url: str) -> None:
    """Its polls find nothing to write."""
    settings = settings_for(private, redis_url)
    app = make_dispatcher_app(settings, find_installation(settings))
    dispatcher = Dispatcher(settings, app, find_installation(settings))
    try:
        assert not _read_only(dispatcher)
        _set_read_only(private, True)
        until(lambda: _read_only(dispatcher), what="a poll finds it read-only")
        with transaction(dispatcher.engine) as connection:
            before = connection.scalar(text("SELECT pg_backend_pid()"))
        assert _read_only(dispatcher)
        with transaction(dispatcher.engine) as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != before, "the DSN may lead elsewhere by now"
        _set_read_only(private, False)
        insert_runs(private)
        until(lambda: not _read_only(dispatcher), what="it takes writes again")
        assert len(times_claimed(private)) == 1
    finally:
        dispatcher.close()
        app.close()


def _read_only(dispatcher: Dispatcher) -> bool:
    try:
        assert dispatcher.poller.poll().failing == ()
    except DatabaseError as error:
        return "read-only" in str(error)
    return False


def test_connections_to_a_read_only_server_are_dropped(private: Database) -> None:
    """The DSN leads to another server by now; a kept connection would lead to the old one for ever."""
    engine = make_engine(settings_for(private), role="test", connections=2)
    try:
        with transaction(engine) as connection:
            before = connection.scalar(text("SELECT pg_backend_pid()"))
        _set_read_only(private, True)

        def refused() -> bool:
            try:
                with transaction(engine) as writing:
                    writing.execute(text("UPDATE workflow_runs SET status = status"))
            except DatabaseError as error:
                return "read-only" in str(error)
            return False

        until(refused, what="a write is refused")
        with transaction(engine) as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != before
    finally:
        engine.dispose()
