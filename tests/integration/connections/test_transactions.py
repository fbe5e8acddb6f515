"""Transactions: none stays open across broker I/O or across a run, and each begins with its settings."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.statements.look import QUEUED
from orcheo_dispatch.shared.schema.migrate import migrate
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database
from tests.support.database.runs import everything, insert_runs, ledger, read_run, settings_for, store_of
from tests.support.processes.processes import Stack, until

_OPEN = """
SELECT application_name, state, query FROM pg_stat_activity
 WHERE application_name LIKE 'orcheo-dispatch%%' AND state <> 'idle' AND datname = current_database()
"""
_SETTINGS = text("""
SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('transaction_read_only'),
       current_setting('plan_cache_mode')
""")


def test_no_transaction_is_open_while_a_run_executes(database: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    # A heartbeat so slow that it cannot be met by chance.
    slow = {"ORCHEO_WORKER_HEARTBEAT": "60", "ORCHEO_WORKER_LEASE": "300"}
    with stack.running("worker", **slow):
        with stack.running("dispatcher", **slow) as dispatcher:
            until(lambda: stack.noted("begun"), what="the run begins")
            dispatcher.signal(signal.SIGTERM)
            dispatcher.exit_code()
        assert everything(database, _OPEN) == []
        assert len(everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'running'")) == 1


def test_no_transaction_is_open_while_redis_does_not_answer(database: Database, redis_server: EmbeddedRedis) -> None:
    (run_id,) = insert_runs(database)
    settings = settings_for(database, redis_server.url)
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    dispatcher.poller.poll()
    insert_runs(database)
    assert redis_server.pid is not None
    os.kill(redis_server.pid, signal.SIGSTOP)
    polling = threading.Thread(target=dispatcher.poller.poll)
    try:
        polling.start()
        until(
            lambda: len(everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'claimed'")) == 2,
            what="the second claim is committed",
        )
        assert polling.is_alive()
        assert everything(database, _OPEN) == []
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
        polling.join()
        dispatcher.poller.finish()
        dispatcher.close()
        app.close()
    assert ledger(database, run_id)["state"] == "published"


def test_run_survives_a_restart_of_postgres(postgres_server: EmbeddedPostgres, redis_url: str, tmp_path: Path) -> None:
    """A run that ends while Postgres is unavailable keeps its outcome and writes it when Postgres is back."""
    database = Database("postgres", postgres_server.url)
    from tests.support.database.databases import make_orcheo_tables

    make_orcheo_tables(database, redis_url)
    migrate(Settings.load(postgres_dsn=database.dsn))
    stack = Stack(database, redis_url, tmp_path / "side-effects")
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 5})
    with (
        stack.running("worker", ORCHEO_WORKER_LEASE="30") as worker,
        stack.running("dispatcher", ORCHEO_WORKER_LEASE="30") as dispatcher,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        postgres_server.kill()
        dispatcher.saw("database_unavailable")
        worker.saw("settle_waits_for_database")
        postgres_server.start()
        dispatcher.saw("database_reconnected")
        until(lambda: read_run(database, run_id)["status"] == "succeeded", what="the run succeeded")
    assert stack.noted("begun") == [run_id]


def test_statement_that_comes_again_is_planned_once(database: Database) -> None:
    with store_of(database, connections=1) as (store, engine):
        for _ in range(6):
            store.queued()
        with transaction(engine) as connection:
            prepared = connection.execute(text("SELECT statement, generic_plans FROM pg_prepared_statements")).all()
    assert [plans > 0 for statement, plans in prepared if statement == str(QUEUED)] == [True]


def test_pooler_that_passed_for_a_server_is_found_out(database: Database) -> None:
    """Somebody else's statements are on the connection: once that is an error, and from then on nothing is prepared."""
    with store_of(database, connections=1) as (store, engine):
        for _ in range(6):
            store.queued()
        with transaction(engine) as connection:
            # Not noticed by the driver, as little as what a pooler does.
            connection.exec_driver_sql("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
        with pytest.raises(DatabaseError):
            store.queued()
        for _ in range(6):
            assert store.queued() == 0
        with transaction(engine) as connection:
            assert connection.execute(text("SELECT FROM pg_prepared_statements")).all() == []


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["30s", "10s", "off", "force_generic_plan"]),
        ({"timeout_milliseconds": 1500}, ["1500ms", "10s", "off", "force_generic_plan"]),
        ({"lock_timeout": 0.2, "many_rows": True}, ["30s", "200ms", "off", "force_custom_plan"]),
        ({"read_only": True}, ["30s", "10s", "on", "force_generic_plan"]),
    ],
    ids=["defaults", "timeout", "locks and plans", "read only"],
)
def test_settings_of_a_transaction_come_with_its_begin(
    database: Database, options: dict[str, Any], chosen: list[str]
) -> None:
    """A message of their own would cost each transaction a round trip. The next transaction has the defaults again."""
    with store_of(database) as (_, engine):
        sent: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *each: sent.append(each[2].strip()))
        with transaction(engine, **options) as connection:
            assert [*connection.execute(_SETTINGS).one()] == chosen
        assert [each.split()[0] for each in sent] == ["BEGIN", "SELECT"]
        with transaction(engine) as connection:
            assert [*connection.execute(_SETTINGS).one()] == ["30s", "10s", "off", "force_generic_plan"]
