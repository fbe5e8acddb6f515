"""Who holds a lock on our tables, or has had a transaction open, is named; nobody else is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.database.lock_holders import lock_holders, open_transactions
from tests.support.database.databases import Database, cloned
from tests.support.database.runs import everything, execute, insert_runs, store_of
from tests.support.processes.processes import until
from tests.support.servers.servers import Servers

type Session = psycopg.Connection[Any]

_WAITS = "SELECT pid FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    with store_of(database) as (_, engine):
        yield engine


def _open(database: Database) -> Session:
    return psycopg.connect(database.dsn, application_name="somebody")


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch", "orcheo_dispatch.policy"])
@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        ("ACCESS SHARE", False),
        ("ROW EXCLUSIVE", False),
        ("SHARE", True),
        ("SHARE ROW EXCLUSIVE", True),
        ("EXCLUSIVE", True),
        ("ACCESS EXCLUSIVE", True),
    ],
)
def test_holder_of_a_lock_that_blocks_is_named_once(
    database: Database, engine: Engine, table: str, mode: str, blocks: bool
) -> None:
    with _open(database) as other:
        other.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        of_pid = f"pid {other.info.backend_pid} (somebody) holds {mode.title().replace(' ', '')}Lock on {_bare(table)},"
        for writers in (False, True):
            found = lock_holders(engine, writers=writers)
            assert found.startswith(of_pid) if blocks or writers else found == ""
            assert found.count("pid ") == (blocks or writers)
    assert lock_holders(engine, writers=True) == ""


def _bare(table: str) -> str:
    return table.rpartition(".")[2]


def test_other_tables_and_other_databases_are_not_ours(
    database: Database, engine: Engine, admin: Session, servers: Servers, template: Database
) -> None:
    execute(database, "CREATE TABLE other ()")
    # Cloned from the same database, its tables have the same numbers.
    with cloned(admin, servers, template.name) as twin, _open(database) as one, _open(twin) as two:
        one.execute("LOCK TABLE other")
        two.execute("LOCK TABLE workflow_runs, orcheo_dispatch.dispatch")
        assert lock_holders(engine) == lock_holders(engine, writers=True) == ""
        assert open_transactions(engine, seconds=0).startswith(f"pid {one.info.backend_pid} (somebody) has had a")
        assert open_transactions(engine, seconds=0).count("pid ") == 1
        assert open_transactions(engine) == ""


def test_session_that_waits_for_a_row_holds_up_no_table(database: Database, engine: Engine) -> None:
    (run_id,) = insert_runs(database)
    with _open(database) as one, _open(database) as two, ThreadPoolExecutor() as pool:
        one.execute("SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (run_id,))
        waits = pool.submit(two.execute, "SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (run_id,))
        until(lambda: everything(database, _WAITS), what="the second session waits")
        assert lock_holders(engine) == ""
        one.rollback()
        with suppress(psycopg.Error):
            waits.result(timeout=30)


def test_session_that_awaits_a_lock_is_named_too(database: Database, engine: Engine) -> None:
    with _open(database) as one, _open(database) as two, ThreadPoolExecutor() as pool:
        one.execute("LOCK TABLE workflow_runs IN ACCESS SHARE MODE")
        waits = pool.submit(two.execute, "LOCK TABLE workflow_runs")
        of_pid = f"pid {two.info.backend_pid} (somebody) waits for AccessExclusiveLock on workflow_runs"
        until(lambda: lock_holders(engine).startswith(of_pid), what="the waiting session is named")
        one.rollback()
        waits.result(timeout=30)
