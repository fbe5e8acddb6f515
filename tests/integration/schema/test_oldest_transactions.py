"""What holds back vacuum, as the view and the metric show it: sessions, standbys, prepared transactions, autovacuum."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus

from orcheo_dispatch.dispatcher.backlog import OLDEST_TRANSACTION
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, one, store_of
from tests.support.processes.processes import until

_AUTOVACUUM_SECONDS = 40
_EPOCH_SECONDS = 946_684_800
"""2000-01-01, from which replication messages count microseconds."""


def _listed(database: Database) -> list[dict[str, Any]]:
    return everything(database, "SELECT * FROM orcheo_dispatch.oldest_transactions")


def _let_pass(database: Database, transactions: int) -> None:
    for _ in range(transactions):
        execute(database, "SELECT pg_current_xact_id()")


def test_oldest_transaction_is_listed_first(database: Database) -> None:
    with psycopg.connect(database.dsn) as open_one:
        open_one.execute("CREATE TEMPORARY TABLE held ()")
        _let_pass(database, 6)
        first = _listed(database)[0]
        assert (first["holder"], first["pid"]) == ("session", open_one.info.backend_pid)
        assert first["xmin_age"] >= 6
        assert first["seconds"] >= 0


def test_open_transactions_of_this_database_alone_are_listed(database: Database) -> None:
    slot = f"slot_{database.name}"
    with (
        psycopg.connect(database.dsn) as writes,
        psycopg.connect(database.dsn) as has_read,
        psycopg.connect(database.dsn, autocommit=True) as idle,
        psycopg.connect(database.dsn, dbname="postgres") as elsewhere,
    ):
        for connection in (writes, elsewhere):
            connection.execute("CREATE TEMPORARY TABLE held ()")
        has_read.execute("SELECT 1")
        idle.execute("SELECT pg_create_physical_replication_slot(%s)", (slot,))
        try:
            listed = _listed(database)
        finally:
            idle.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        pids = {writes.info.backend_pid, has_read.info.backend_pid}
    # A slot that holds back no row is none of them.
    assert {(row["holder"], row["pid"]) for row in listed} == {("session", pid) for pid in pids}


@contextmanager
def _standby(database: Database) -> Iterator[int]:
    """Send the server what a standby with `hot_standby_feedback` sends; yield the pid of the process that serves it."""
    xmin = one(database, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin")["xmin"]
    try:
        connection = psycopg.connect(database.dsn, replication="true", autocommit=True)
    except psycopg.OperationalError as error:
        pytest.skip(f"the server takes no standby from here: {error}")
    # Left by closing it: there is no COMMIT in the middle of a stream.
    with closing(connection):
        place = connection.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2) or b""
        started = connection.pgconn.exec_(b"START_REPLICATION PHYSICAL " + place)
        assert started.status == ExecStatus.COPY_BOTH
        now = int((time.time() - _EPOCH_SECONDS) * 1e6)
        # Its oldest transaction by number and epoch, and none of its own catalogs'.
        connection.pgconn.put_copy_data(struct.pack("!cqIIII", b"h", now, xmin % 2**32, xmin // 2**32, 0, 0))
        connection.pgconn.flush()
        yield connection.info.backend_pid


def test_standby_that_holds_back_rows_is_listed(database: Database) -> None:
    with _standby(database) as pid:
        _let_pass(database, 3)
        until(lambda: pid in {row["pid"] for row in _listed(database)}, what="the standby is listed", seconds=5)
        (row,) = [each for each in _listed(database) if each["pid"] == pid]
        assert (row["holder"], row["xmin_age"] >= 3) == ("session", True)
    # No other test sees it.
    until(lambda: pid not in {row["pid"] for row in _listed(database)}, what="the standby is gone")


@pytest.fixture
def eager_autovacuum(database: Database) -> Iterator[None]:
    """Autovacuum looks at each database every second, and takes long for the table `vacuumed`."""
    if not one(database, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")["rolsuper"]:
        pytest.skip("only a superuser may change when autovacuum runs")
    execute(database, "ALTER SYSTEM SET autovacuum_naptime = '1s'")
    execute(database, "SELECT pg_reload_conf()")
    execute(
        database,
        "CREATE TABLE vacuumed WITH (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,"
        " autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0)"
        " AS SELECT n, repeat('x', 500) AS text FROM generate_series(1, 20_000) AS n",
    )
    execute(database, "DELETE FROM vacuumed")
    yield
    execute(database, "ALTER SYSTEM RESET autovacuum_naptime")
    execute(database, "SELECT pg_reload_conf()")


def _autovacuum(database: Database) -> list[dict[str, Any]]:
    return everything(
        database,
        "SELECT a.pid, age(a.backend_xmin) AS age FROM pg_stat_activity AS a"
        "  JOIN pg_stat_progress_vacuum AS v ON v.pid = a.pid AND v.relid = 'vacuumed'::regclass"
        " WHERE a.backend_type = 'autovacuum worker' AND a.backend_xmin IS NOT NULL",
    )


@pytest.mark.usefixtures("eager_autovacuum")
def test_autovacuum_is_neither_listed_nor_counted(database: Database) -> None:
    until(lambda: _autovacuum(database), what="autovacuum is at work", seconds=_AUTOVACUUM_SECONDS)
    with store_of(database) as (_, engine), engine.connect() as connection:
        _let_pass(database, 6)
        oldest = connection.execute(OLDEST_TRANSACTION).scalar_one()
        connection.rollback()
        listed = _listed(database)
    # It is still there, and older than what was counted.
    (worker,) = _autovacuum(database)
    assert worker["age"] >= 6
    assert oldest < 6
    assert worker["pid"] not in {row["pid"] for row in listed}


def test_prepared_transactions_of_this_database_are_listed(
    database: Database, postgres_server: EmbeddedPostgres
) -> None:
    (definition,) = everything(
        database, "SELECT pg_get_viewdef('orcheo_dispatch.oldest_transactions'::regclass) AS sql"
    )
    assert [row for row in _listed(database) if row["holder"] == "prepared transaction"] == []
    here = Database("postgres", postgres_server.url)
    execute(here, "ALTER SYSTEM SET max_prepared_transactions = 5")
    postgres_server.stop()
    postgres_server.start()
    execute(here, "CREATE SCHEMA orcheo_dispatch")
    execute(here, f"CREATE VIEW orcheo_dispatch.oldest_transactions AS {definition['sql']}")
    execute(here, "CREATE DATABASE elsewhere")
    for name in ("postgres", "elsewhere"):
        with psycopg.connect(here.dsn, dbname=name) as connection:
            connection.execute("CREATE TABLE held ()")
            connection.execute(f"PREPARE TRANSACTION 'in {name}'".encode())
    (row,) = _listed(here)
    assert (row["holder"], row["pid"], row["name"], row["role"]) == (
        *("prepared transaction", None, "in postgres", "postgres"),
    )
    assert row["xmin_age"] >= 1
