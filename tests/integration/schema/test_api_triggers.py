"""Triggers on the API's table: which updates of a run are refused, and when a trigger counts as present."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from orcheo_dispatch.shared.schema import api_table, begin_guard
from tests.support.database.comparing import RolledBack
from tests.support.database.databases import Database
from tests.support.database.run_states import Entry, State, write
from tests.support.database.runs import execute, insert_runs, store_of

_STATUSES = ("pending", "running", "failed")
_UPDATE = text("""
UPDATE workflow_runs
   SET status = :status, payload = payload || jsonb_build_object('status', CAST(:status AS text), 'started_at',
                                                                  CAST(:started AS text))
 WHERE id = 'run'
""")


@pytest.mark.parametrize("before", _STATUSES)
@pytest.mark.parametrize("after", _STATUSES)
@pytest.mark.parametrize("attempts", [None, 0, 1])
@pytest.mark.parametrize("started", ["then", "again", None])
def test_second_start_of_a_run_that_a_worker_has_begun_is_refused(
    rolled_back: RolledBack, before: str, after: str, attempts: int | None, started: str | None
) -> None:
    entry = None if attempts is None else Entry("settled", "released", attempts=attempts, settled=1)
    run = State("run", before, started="then", entry=entry)
    # Of another run it does not matter.
    other = State("other", "pending", entry=Entry("settled", "released", attempts=1, settled=1))
    refused = after == "running" and before != "pending" and started != "then" and bool(attempts)
    with rolled_back() as connection:
        connection.exec_driver_sql(f"DROP TRIGGER {begin_guard.TRIGGER} ON workflow_runs")
        connection.exec_driver_sql(begin_guard._CREATE_FUNCTION)
        connection.exec_driver_sql(begin_guard._CREATE_TRIGGER)
        write(connection, [run, other])
        with pytest.raises(DBAPIError, match="has begun run run") if refused else nullcontext():
            connection.execute(_UPDATE, {"status": after, "started": started})


@pytest.mark.parametrize(
    ("is_there", "switch", "trigger"),
    [
        (begin_guard.guards_begins, begin_guard.set_guard, begin_guard.TRIGGER),
        (api_table.notifies, api_table.set_notify, api_table.TRIGGER),
    ],
    ids=["guard", "notify"],
)
def test_trigger_counts_if_it_is_on_the_table_of_the_api_and_enabled(
    database: Database,
    is_there: Callable[[Connection], bool],
    switch: Callable[..., None],
    trigger: str,
) -> None:
    with store_of(database) as (_, engine):

        def seen() -> bool:
            with engine.connect() as connection:
                return is_there(connection)

        switch(engine, on=False)
        assert not seen()
        _add_others(database, trigger)
        assert not seen()
        switch(engine, on=True)
        assert seen()
        execute(database, f"ALTER TABLE workflow_runs DISABLE TRIGGER {trigger}")
        assert not seen()
        execute(database, f"ALTER TABLE workflow_runs ENABLE TRIGGER {trigger}")
        assert seen()
        switch(engine, on=False)
        assert not seen()


def _add_others(database: Database, trigger: str) -> None:
    """Add a trigger of that name to another table, and triggers of other names to this one."""
    execute(database, "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    for name, table in ((trigger, "workflows"), ("aaa", "workflow_runs"), ("zzz", "workflow_runs")):
        execute(database, f"CREATE TRIGGER {name} AFTER DELETE ON {table} EXECUTE FUNCTION nothing()")


def test_transaction_notifies_unless_another_open_one_does(database: Database) -> None:
    with store_of(database) as (_, engine):
        api_table.set_notify(engine, on=True)
    with (
        psycopg.connect(database.dsn, autocommit=True) as listener,
        psycopg.connect(database.dsn) as first,
    ):
        listener.execute(f"LISTEN {api_table.CHANNEL}")
        first.execute("UPDATE workflow_runs SET status = status")
        insert_runs(database)
        assert len([*listener.notifies(timeout=5, stop_after=1)]) == 1
        first.execute(
            "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload,"
            "                           created_at, updated_at)"
            " VALUES ('one', 'w', 'v', 'pending', 'webhook', '{}', now(), now())"
        )
        insert_runs(database)
        assert [*listener.notifies(timeout=0.5)] == []
        first.commit()
        assert len([*listener.notifies(timeout=5, stop_after=1)]) == 1
