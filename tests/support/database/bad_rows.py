"""Rows that Postgres refuses to change, and rows that somebody holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.shared.logs.lines import log
from tests.support.database.databases import Database

STATES = ("P0001", "57014", "23514", "42501", "42P01", "40001", "53100", "55P03", "08006", "25006", "26000", "57P01")
"""SQLSTATEs of every kind: those of refusals, and those that elsewhere mean a conflict, a lock or an outage."""

_FUNCTION = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(to_jsonb(NEW) ->> '{key}', to_jsonb(OLD) ->> '{key}') = '{run_id}' THEN
        RAISE EXCEPTION 'no, %', 'a secret of the run' USING ERRCODE = '{state}';
    END IF;
    RETURN COALESCE(NEW, OLD);
END $$
"""
_AT_ONCE = "CREATE TRIGGER refuse BEFORE {events} ON {table} FOR EACH ROW EXECUTE FUNCTION public.refuse()"
_AT_COMMIT = """
CREATE CONSTRAINT TRIGGER refuse AFTER {events} ON {table} DEFERRABLE INITIALLY DEFERRED
   FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""
_LEDGER, _RUNS = "orcheo_dispatch.dispatch", "workflow_runs"


def refuse(
    database: Database,
    run_id: str,
    *,
    table: str = _LEDGER,
    state: str = "P0001",
    events: str = "INSERT OR UPDATE OR DELETE",
    at_commit: bool = False,
) -> None:
    """Have a trigger refuse every change of one run's row."""
    key = "id" if table == "workflow_runs" else "run_id"
    form = _AT_COMMIT if at_commit else _AT_ONCE
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_FUNCTION.format(key=key, run_id=run_id, state=state).encode())
        connection.execute(form.format(events=events, table=table).encode())


def allow(database: Database, table: str = _LEDGER) -> None:
    """Take the trigger away."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(f"DROP TRIGGER refuse ON {table}".encode())


@contextmanager
def holding(database: Database, run_id: str, table: str = _LEDGER) -> Iterator[psycopg.Connection[Any]]:
    """Hold a run's row, as a session does that somebody forgot to end."""
    key = "id" if table == "workflow_runs" else "run_id"
    with psycopg.connect(database.dsn, application_name="forgotten") as session:
        rows = session.execute(f"SELECT FROM {table} WHERE {key} = %s FOR UPDATE".encode(), (run_id,)).fetchall()
        assert len(rows) == 1
        yield session
        session.rollback()


@contextmanager
def locking(database: Database, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[psycopg.Connection[Any]]:
    """Hold a lock on a whole table."""
    with psycopg.connect(database.dsn, application_name="alter[bold]ing") as session:
        session.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        yield session
        session.rollback()


class Events:
    """What was logged while a test ran."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, message: Any) -> None:
        """Take down a record of loguru."""
        self.all.append((message.record["message"], dict(message.record["extra"])))

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of each event of this name."""
        return [fields for event, fields in self.all if event == name]


@contextmanager
def logged() -> Iterator[Events]:
    """Take down what is logged."""
    events = Events()
    sink = log.add(events, level="DEBUG", format="{message}")
    try:
        yield events
    finally:
        log.remove(sink)


@pytest.fixture
def events() -> Iterator[Events]:
    """What is logged during the test."""
    with logged() as taken:
        yield taken
