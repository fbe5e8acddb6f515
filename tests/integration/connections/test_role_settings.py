"""Whatever a role's sessions begin with, runs are dispatched, executed, settled and shown as they are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.dispatcher.page.figures import read_figures
from orcheo_dispatch.dispatcher.wakeups.listen import Hearing, NotifyListener
from orcheo_dispatch.ops.host.check import check
from orcheo_dispatch.ops.runs.list import Wanted, find_runs
from orcheo_dispatch.ops.runs.story import read_story
from orcheo_dispatch.ops.screen import console, status_view
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.database import connections as database_module
from orcheo_dispatch.shared.database.connections import make_engine, open_engine, transaction
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger import overview
from orcheo_dispatch.shared.ledger.model import Claim, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.status import read_status
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database
from tests.support.database.roles import Kind, Roles
from tests.support.database.runs import (
    all_are,
    audit,
    everything,
    execute,
    insert_runs,
    ledger,
    one,
    read_run,
    settings_for,
)
from tests.support.database.session_settings import ALL_AT_ONCE, SINCE, WORKS, give
from tests.support.database.views import views_of
from tests.support.processes.processes import Stack, until

_OUTPUT = {"text": 'a\\b "c" \u20ac', "float": 0.1 + 0.2, "at": "02.03.2026"}


@pytest.fixture
def used(database: Database, roles: Roles) -> Database:
    """A database for the session's roles of least privilege, whose settings the test chooses."""
    assert database.roles is roles
    return database


def _give(database: Database, settings: dict[str, str]) -> None:
    give(database, [database.dsn_of(kind) for kind in Kind], settings)


@pytest.mark.parametrize("name", WORKS)
def test_way_of_a_run_does_not_depend_on_what_sessions_begin_with(used: Database, redis_url: str, name: str) -> None:
    with psycopg.connect(used.dsn) as connection:
        if connection.info.server_version < SINCE.get(name, 0):
            pytest.skip(f"this Postgres has no such setting: {name}")
    _give(used, WORKS[name])
    succeeds, fails = insert_runs(used, 2)
    _dispatch(used, redis_url)
    _execute(used, succeeds, fails)
    _is_shown(used, succeeds)


def _dispatch(database: Database, redis_url: str) -> None:
    settings = settings_for(database.seen_by(Kind.DISPATCHER), redis_url)
    app = make_dispatcher_app(settings, find_installation(settings))
    dispatcher = Dispatcher(settings, app, find_installation(settings))
    try:
        dispatcher.process.seen(dispatcher.engine)
        report = dispatcher.poller.poll()
    finally:
        dispatcher.close()
        app.close()
    assert (report.claimed, report.published) == (2, 2)


def _execute(database: Database, succeeds: str, fails: str) -> None:
    claims = {run_id: Claim(run_id, ledger(database, run_id)["fence"]) for run_id in (succeeds, fails)}
    with open_engine(settings_for(database.seen_by(Kind.WORKER)), role="test") as engine:
        store, worker = Store(engine), Process(ProcessKind.WORKER)
        worker.seen(engine)
        begun = store.begin_all([*claims.values()], worker_id=worker.id, lease=30)
        assert all(isinstance(run, Run) and run.inputs == {"body": {"name": "Ada"}} for run in begun)
        assert store.heartbeat(claims.values(), lease=30) == dict.fromkeys(claims.values(), True)
        endings = [Ending.succeeded(json.dumps(_OUTPUT)), Ending.failed("no luck", reason="ValueError")]
        settled = store.settle_all(dict(zip(claims.values(), endings, strict=True)))
        assert all(each.ended for each in settled.settled.values())
    row = read_run(database, succeeds)
    assert (row["status"], row["payload"]["output_payload"]) == ("succeeded", _OUTPUT)
    assert row["payload"]["completed_at"].endswith("Z")
    assert audit(row)[-2:] == ["run_started", "run_succeeded"]
    assert read_run(database, fails)["payload"]["error"] == "no luck"


def _is_shown(database: Database, run_id: str) -> None:
    created_at = read_run(database, run_id)["created_at"]
    with open_engine(settings_for(database.seen_by(Kind.DASHBOARD)), role="test") as engine:
        status = read_status(engine)
        assert status.runs == {"failed": 1, "succeeded": 1}
        with console.capture() as shown:
            console.print(status_view(status))
        assert "succeeded" in shown.get()
        assert {run.run_id: run.outcome for run in find_runs(engine, Wanted())}[run_id] == "succeeded"
        story = read_story(engine, run_id, settings_for(database))
        assert story.created_at == created_at
        with transaction(engine, read_only=True) as connection:
            assert read_figures(connection).processes
            assert overview.runs_of(connection, overview.Wanted(), limit=10)
            for view in sorted(views_of(database)):
                connection.execute(text(f"SELECT * FROM {view}")).all()
    for kind in (Kind.DISPATCHER, Kind.WORKER):
        findings = check(
            settings_for(database.seen_by(kind), executor="tests.support.runners.executors:play"),
            ProcessKind(kind.value),
        )
        assert [each for each in findings if each.exit_code == 3] == []


def test_processes_work_for_roles_that_have_everything_otherwise(
    used: Database, redis_url: str, tmp_path: Path
) -> None:
    _give(used, ALL_AT_ONCE)
    stack = Stack(used, redis_url, tmp_path / "effects")
    with stack.running("beat"), stack.running("dispatcher"), stack.running("worker"):
        ids = insert_runs(used, 60)
        until(lambda: all_are(used, "succeeded"), what="all runs succeeded")
    assert {ledger(used, run_id)["attempts"] for run_id in ids} == {1}
    for command in (["status"], ["status", "--json"], ["runs"], ["run", ids[0]], ["poll"], ["check"]):
        with stack.command(*command) as process:
            assert process.exit_code() == 0, process.log


def test_migrate_and_notify_work_for_an_owner_who_has_everything_otherwise(orcheo_database: Database) -> None:
    give(orcheo_database, [orcheo_database.dsn], ALL_AT_ONCE | {"statement_timeout": "10ms"})
    settings = settings_for(orcheo_database)
    assert migrate(settings, notify=True).notify
    heard = threading.Event()
    engine = make_engine(settings, role="test", connections=1)
    listener = NotifyListener(settings, engine, on_notify=heard.set, on_change=lambda _: None)
    listener.start()
    try:
        until(lambda: listener.hearing is Hearing.ON, what="it listens")
        heard.clear()
        # The test's own connections begin with the same.
        give(orcheo_database, [orcheo_database.dsn], {"statement_timeout": "0"})
        insert_runs(orcheo_database)
        assert heard.wait(20)
    finally:
        listener.stop()
        engine.dispose()


def test_migrate_outlasts_a_slow_way_to_postgres(orcheo_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a connection's first statements a process may wait for the network, or for a processor."""
    give(orcheo_database, [orcheo_database.dsn], {"idle_in_transaction_session_timeout": "1ms"})
    ask = database_module.through_pooler

    def ask_slowly(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
        found = ask(connection)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(database_module, "through_pooler", ask_slowly)
    assert migrate(settings_for(orcheo_database)).index_present


def _shown(engine: Any, name: str) -> str:
    with transaction(engine) as connection:
        return str(connection.exec_driver_sql(f"SHOW {name}").scalar_one())


@pytest.fixture
def engine(database: Database) -> Iterator[Any]:
    with open_engine(settings_for(database), role="test", connections=2) as opened:
        yield opened


def test_every_wait_of_a_transaction_has_an_end(engine: Any) -> None:
    timeouts = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
    assert [_shown(engine, name) for name in timeouts] == ["30s", "10s", "15s", "0"]


def test_commit_is_durable_unless_the_role_wants_more(database: Database) -> None:
    for given, kept in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        give(database, [database.dsn], {"synchronous_commit": given})
        with open_engine(settings_for(database), role="test") as opened:
            assert _shown(opened, "synchronous_commit") == kept


def test_transaction_left_idle_loses_its_locks(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with open_engine(settings_for(database), role="idle") as opened, pytest.raises(DatabaseError):
        _stay_idle(database, opened, run_id)
    assert one(database, "SELECT status FROM workflow_runs")["status"] == "pending"


def _stay_idle(database: Database, engine: Any, run_id: str) -> None:
    with transaction(engine) as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 100")
        connection.exec_driver_sql("SELECT FROM workflow_runs FOR UPDATE")
        until(
            lambda: not everything(database, "SELECT FROM pg_stat_activity WHERE application_name LIKE '%%idle'"),
            what="the session was ended",
        )
        execute(database, "UPDATE workflow_runs SET updated_at = updated_at WHERE id = %s", run_id)
