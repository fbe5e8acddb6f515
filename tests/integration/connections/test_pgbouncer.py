"""Behind PgBouncer in transaction mode: runs are dispatched and settled, and what cannot work there says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.dispatcher.wakeups.listen import Hearing, NotifyListener
from orcheo_dispatch.ops.host.check import check
from orcheo_dispatch.shared.database.connections import connect, through_pooler
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.schema.api_table import CHANNEL
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database
from tests.support.database.pgbouncer import MISSING, PgBouncer, find
from tests.support.database.roles import Kind
from tests.support.database.runs import all_are, execute, insert_runs, ledger, read_run, settings_for, store_of
from tests.support.database.session_settings import ALL_AT_ONCE, give
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import scratch

pytestmark = pytest.mark.skipif(find() is None, reason=MISSING)

_ALL_DAY = "3600"
_CONNECTIONS = 4


@pytest.fixture
def bouncer(database: Database) -> Iterator[PgBouncer]:
    """A pooler before the test's database, for its owner and for the roles of least privilege."""
    dsns = [database.dsn, *(database.dsn_of(kind) for kind in Kind)]
    with scratch() as folder, PgBouncer(folder, dsns) as pooler:
        pooler.fill(_CONNECTIONS)
        yield pooler


@pytest.fixture
def stack(database: Database, bouncer: PgBouncer, redis_url: str, tmp_path: Path) -> Stack:
    """Our processes, each with its role of least privilege, all behind the pooler."""
    return Stack(bouncer.before(database), redis_url, tmp_path / "effects")


def test_each_transaction_goes_to_another_connection(bouncer: PgBouncer) -> None:
    """What the other tests stand on: nothing that a session knows lasts for longer than a transaction."""
    with psycopg.connect(bouncer.url, autocommit=True, prepare_threshold=None) as client:
        pids = {client.execute("SELECT pg_backend_pid()").fetchone() for _ in range(12)}
    assert len(pids) == _CONNECTIONS


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_runs_are_dispatched_and_settled(database: Database, stack: Stack, isolation: str) -> None:
    with (
        stack.running("beat"),
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_ISOLATION=isolation, ORCHEO_WORKER_CONCURRENCY="4"),
    ):
        ids = insert_runs(database, 40)
        until(lambda: all_are(database, "succeeded"), what="all runs succeeded")
    for run_id in ids:
        assert (ledger(database, run_id)["outcome"], ledger(database, run_id)["attempts"]) == ("succeeded", 1)
        read_run(database, run_id)
    assert sorted(stack.noted("begun") or ids) == sorted(ids)


@pytest.fixture
def odd_roles(database: Database) -> None:
    """Settings for the roles, before the pooler connects as them."""
    # While the pooler is filled, transactions of the test are idle.
    settings = {name: value for name, value in ALL_AT_ONCE.items() if not name.startswith("idle_")}
    give(database, [database.dsn_of(kind) for kind in Kind], settings)


@pytest.mark.usefixtures("odd_roles")
def test_settings_of_roles_do_not_matter_behind_the_pooler(database: Database, stack: Stack) -> None:
    with stack.running("dispatcher"), stack.running("worker"):
        ids = insert_runs(database, 20)
        until(lambda: all_are(database, "succeeded"), what="all runs succeeded")
    assert {ledger(database, run_id)["attempts"] for run_id in ids} == {1}
    for command in ("status", "runs", "check"):
        with stack.command(command) as process:
            assert process.exit_code() == 0, process.log


def test_session_mode_works_as_well(database: Database, redis_url: str, tmp_path: Path) -> None:
    dsns = [database.dsn, *(database.dsn_of(kind) for kind in Kind)]
    give(database, dsns[1:], ALL_AT_ONCE)
    with scratch() as folder, PgBouncer(folder, dsns, size=20, mode="session") as pooler:
        stack = Stack(pooler.before(database), redis_url, tmp_path / "effects")
        with stack.running("dispatcher"), stack.running("worker"):
            insert_runs(database, 10)
            until(lambda: all_are(database, "succeeded"), what="all runs succeeded")


def test_pooler_that_restarts_is_as_a_database_that_was_away(
    database: Database, bouncer: PgBouncer, stack: Stack
) -> None:
    with stack.running("dispatcher") as dispatcher, stack.running("worker"):
        insert_runs(database)
        until(lambda: all_are(database, "succeeded"), what="the first run succeeded")
        bouncer.kill()
        dispatcher.saw("database_unavailable")
        bouncer.start()
        dispatcher.saw("database_reconnected")
        insert_runs(database)
        until(lambda: all_are(database, "succeeded"), what="the second run succeeded")


def test_pooler_is_told_from_a_server(database: Database, bouncer: PgBouncer) -> None:
    with connect(database.dsn, role="test") as direct, connect(bouncer.url, role="test") as pooled:
        assert (through_pooler(direct), through_pooler(pooled)) == (False, True)


def test_nothing_is_listened_to_through_the_pooler(database: Database, bouncer: PgBouncer) -> None:
    migrate(settings_for(database), notify=True)
    states: list[bool] = []
    with store_of(bouncer.before(database)) as (_, engine):
        settings = settings_for(bouncer.before(database))
        listener = NotifyListener(settings, engine, on_notify=lambda: None, on_change=states.append, look_seconds=0.1)
        listener.start()
        until(lambda: listener.hearing is Hearing.POOLER, what="the pooler was noticed")
        listener.stop()
    assert states == [False]


def test_listen_through_the_pooler_would_hear_nothing(database: Database, bouncer: PgBouncer) -> None:
    """Why it is not tried: LISTEN succeeds, and holds for a connection that the next transaction does not get."""
    with psycopg.connect(bouncer.url, autocommit=True, prepare_threshold=None) as client:
        client.execute(f"LISTEN {CHANNEL}")
        for _ in range(5):
            execute(database, f"NOTIFY {CHANNEL}")
            client.execute("SELECT 1")
        assert len(list(client.notifies(timeout=0.5))) < 5


def test_way_around_the_pooler_wakes_the_dispatcher(database: Database, stack: Stack) -> None:
    migrate(settings_for(database), notify=True)
    direct = database.dsn_of(Kind.DISPATCHER)
    variables = {"ORCHEO_DISPATCH_POLL_INTERVAL": _ALL_DAY, "ORCHEO_DISPATCH_LISTEN_DSN": direct}
    with stack.running("dispatcher", **variables) as dispatcher:
        dispatcher.saw(f"listening channel={CHANNEL}")
        insert_runs(database)
        dispatcher.saw("published=1")


def test_check_says_what_the_pooler_costs(database: Database, bouncer: PgBouncer, redis_url: str) -> None:
    def found(**overrides: Any) -> dict[str, tuple[str, str]]:
        findings = check(settings_for(bouncer.before(database), redis_url, **overrides))
        return {each.what: (each.grade, each.found) for each in findings}

    assert found()["rights"][0] == "ok"
    assert found()["wake-up by NOTIFY"][0] == "ok"
    migrate(settings_for(database), notify=True)
    name = "ORCHEO_POSTGRES_DSN"
    assert found()["wake-up by NOTIFY"] == ("warn", f"not heard: {name} leads through a pooler")
    name = "ORCHEO_DISPATCH_LISTEN_DSN"
    assert found(listen_dsn=bouncer.url)["wake-up by NOTIFY"] == ("warn", f"not heard: {name} leads through a pooler")
    assert found(listen_dsn=database.dsn)["wake-up by NOTIFY"] == ("ok", f"on, received by {name}")


def test_migrate_refuses_the_pooler(database: Database, bouncer: PgBouncer) -> None:
    """Its lock would belong to a connection of the pool, and stay there."""
    with pytest.raises(SettingsError, match="ORCHEO_POSTGRES_DSN leads through a pooler"):
        migrate(settings_for(bouncer.before(database)))
