"""What a database may do to one run: refuse a change of it with any SQLSTATE, take its time, or hold its row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.support.database.databases import Database
from tests.support.database.runs import execute

RAISE = "RAISE EXCEPTION 'refused for %%', NEW.{key} USING ERRCODE = '{state}';"
SLEEP = "PERFORM pg_sleep(60);"
FLOOD = "FOR n IN 1..100000 LOOP RAISE WARNING 'line % of many, of some length at that', n; END LOOP;"

_FUNCTION = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.{key} IN ({run_ids}) AND {condition} THEN {body} END IF;
    RETURN NEW;
END $$
"""
_TRIGGER = "CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()"
_DEFERRED = """
CREATE CONSTRAINT TRIGGER {name} AFTER UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION {name}()
"""


def meddle(
    database: Database,
    *run_ids: str,
    condition: str,
    body: str = "",
    state: str = "P0001",
    table: str = "workflow_runs",
    deferred: bool = False,
) -> None:
    """Make a trigger that does `body` at each change of these runs that fits `condition`; it raises by default."""
    key = "id" if table == "workflow_runs" else "run_id"
    body = body or RAISE.format(key=key, state=state).replace("%%", "%")
    names = {"name": f"meddle_{abs(hash((run_ids, condition, body, state)))}", "table": table}
    ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
    function = _FUNCTION.format(key=key, run_ids=ids, condition=condition, body=body, **names)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(function.encode())
        connection.execute((_DEFERRED if deferred else _TRIGGER).format(**names).encode())


def stop_meddling(database: Database, table: str = "workflow_runs") -> None:
    """Disable all triggers of a table."""
    execute(database, f"ALTER TABLE {table} DISABLE TRIGGER USER")


@contextmanager
def held(database: Database, run_id: str, table: str = "workflow_runs") -> Iterator[psycopg.Connection[Any]]:
    """Hold the row of a run in this table for as long as the block lasts, or until the connection ends it."""
    key = "id" if table == "workflow_runs" else "run_id"
    with psycopg.connect(database.dsn) as somebody:
        somebody.execute(f"SELECT FROM {table} WHERE {key} = %s FOR UPDATE".encode(), (run_id,))
        yield somebody
        somebody.rollback()


@contextmanager
def locked(database: Database, table: str = "workflow_runs") -> Iterator[psycopg.Connection[Any]]:
    """Hold a whole table, as an ALTER TABLE does."""
    with psycopg.connect(database.dsn) as somebody:
        somebody.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield somebody
        somebody.rollback()
