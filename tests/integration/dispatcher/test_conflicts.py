"""What Postgres rolled back on account of others is done again; what it refuses, or may have done, is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import in_transaction, open_engine
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import ConflictError, DatabaseError, RefusedError, RowLockedError, SchemaError
from tests.support.database.databases import Database
from tests.support.database.runs import execute, insert_runs, settings_for

_RAISE = "DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{state}'; END $$"
_WRITE = "UPDATE workflow_runs SET updated_at = now() WHERE id = %s"


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    with open_engine(settings_for(database), role="test", connections=2) as opened:
        yield opened


def _fails_once(engine: Engine, state: str, *, times: int = 1) -> int:
    """Have the first attempts at a transaction fail in Postgres; return how many there were."""
    attempts: list[str] = []

    def work(connection: Connection) -> None:
        attempts.append(state)
        if len(attempts) <= times:
            connection.exec_driver_sql(_RAISE.format(state=state))

    try:
        in_transaction(engine, work)
    except DatabaseError as error:
        error.add_note(f"attempts: {len(attempts)}")
        raise
    return len(attempts)


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_conflict_is_tried_again(engine: Engine, state: str) -> None:
    assert _fails_once(engine, state) == 2


def test_conflict_that_comes_again_and_again_is_given_up(engine: Engine) -> None:
    with pytest.raises(ConflictError) as raised:
        _fails_once(engine, "40001", times=100)
    assert raised.value.__notes__ == ["attempts: 5"]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("40003", DatabaseError),
        ("40002", RefusedError),
        ("P0001", RefusedError),
        ("23514", RefusedError),
        ("22P05", RefusedError),
        ("54000", RefusedError),
        ("53400", RefusedError),
        ("55P03", RowLockedError),
        ("42501", SchemaError),
        ("42P01", SchemaError),
        ("57014", DatabaseError),
        ("53100", DatabaseError),
        ("08006", DatabaseError),
        ("25006", DatabaseError),
        ("XX000", RefusedError),
    ],
)
def test_anything_else_is_tried_once(engine: Engine, state: str, kind: type[DatabaseError]) -> None:
    with pytest.raises(DatabaseError) as raised:
        _fails_once(engine, state)
    assert (type(raised.value), raised.value.__notes__) == (kind, ["attempts: 1"])


def test_victim_of_a_deadlock_is_tried_again(database: Database, engine: Engine) -> None:
    first, second = insert_runs(database, 2)
    attempts: list[int] = []
    with psycopg.connect(database.dsn) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute(_WRITE, [second])

        def close_the_circle() -> None:
            other.execute(_WRITE, [first])
            other.commit()

        closing = threading.Thread(target=close_the_circle)

        def work(connection: Connection) -> str:
            attempts.append(1)
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
            connection.exec_driver_sql(_WRITE, (first,))
            if len(attempts) == 1:
                closing.start()
            connection.exec_driver_sql(_WRITE, (second,))
            return "written"

        assert in_transaction(engine, work) == "written"
        closing.join()
    assert len(attempts) == 2


def test_broken_connection_is_an_outage(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        execute(database, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        with pytest.raises(psycopg.OperationalError) as raised:
            connection.execute("SELECT 1")
    assert failure_of(raised.value) is Failure.OUTAGE
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect("host=127.0.0.1 port=1 dbname=x user=y")
    assert failure_of(raised.value) is Failure.OUTAGE
