"""Our objects in the API's table: two indexes on pending runs and, on request, a trigger that notifies.

Nothing here imports Alembic: processes look for both when they start, and migrate nothing.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from orcheo_dispatch.shared.database.ddl import LOCK_MILLISECONDS, PATIENCE_SECONDS, patiently
from orcheo_dispatch.shared.database.lock_holders import open_transactions
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import RowLockedError
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX, SCHEMA, TURNS_INDEX

CHANNEL = "orcheo_dispatch"
"""What is notified on, in the database of the runs."""
TRIGGER = "orcheo_dispatch_wake"
_FUNCTION = f"{SCHEMA}.wake()"
_NOTIFY_KEY = 0x0C4E_0D16

_INDEX_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)"
# CONCURRENTLY: the API continues to insert runs while it is built.
_CREATE_INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON workflow_runs ({columns}) WHERE status = 'pending'"
_DROP_INDEX = "DROP INDEX CONCURRENTLY IF EXISTS {index}"
_COLUMNS = {
    PENDING_INDEX: "created_at, id",
    TURNS_INDEX: "(COALESCE(workspace_id, '')), workflow_id, created_at, id",
}
INDEXES = tuple(_COLUMNS)
"""All that are ours."""

TRIGGER_ENABLED = (
    f"SELECT tgenabled <> 'D' FROM pg_trigger WHERE tgrelid = to_regclass('workflow_runs') AND tgname = '{TRIGGER}'"
)
"""One boolean, false if the trigger is disabled (ALTER TABLE); no row if the trigger does not exist."""
# It must not slow down an insert, so it is silent in two cases, in which a poll finds the run anyway:
# - Another transaction under way notifies. Postgres lets those that notify commit one after the other, in the whole
#   cluster, each with its own flush to disk: a twentieth of the throughput with 32 clients. So only one at a time does;
#   a listener polls again shortly after a notification, for those that were silent.
# - The queue of notifications is half full. Where it is full, a commit that notifies fails. That takes a session that
#   listens and stays in one transaction, and some hundred million notifications.
# Empty payloads fold: however many rows and statements, one notification a transaction.
_CREATE_FUNCTION = f"""
CREATE OR REPLACE FUNCTION {_FUNCTION} RETURNS trigger LANGUAGE plpgsql SECURITY INVOKER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_try_advisory_xact_lock({_NOTIFY_KEY}) AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('{CHANNEL}', '');
    END IF;
    RETURN NULL;
END $$
"""
# A trigger calls it for every role that inserts, whatever its rights; no one else needs it.
_REVOKE_FUNCTION = f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC"
_CREATE_TRIGGER = (
    f"CREATE OR REPLACE TRIGGER {TRIGGER} AFTER INSERT ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION {_FUNCTION}"
)
_DROP_TRIGGER = f"DROP TRIGGER {TRIGGER} ON workflow_runs"
_DROP_FUNCTION = f"DROP FUNCTION IF EXISTS {_FUNCTION}"


def index_is_valid(connection: Connection, index: str = PENDING_INDEX) -> bool | None:
    """Return whether this index on pending runs can be used; None where there is none."""
    valid: bool | None = connection.scalar(text(_INDEX_VALID), {"index": index})
    return valid


def indexes_are_valid(connection: Connection) -> bool:
    """Return whether all indexes on pending runs can be used."""
    return all(index_is_valid(connection, index) for index in INDEXES)


def make_index(engine: Engine, index: str) -> bool:
    """Make this index on pending runs where there is no valid one; return whether it was made.

    Raises `RowLockedError` where a transaction that was open before does not end in time.
    """
    with engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        valid = index_is_valid(autocommit, index)
        if valid:
            return False
        make_concurrently(
            engine,
            autocommit,
            index,
            # An interrupted CONCURRENTLY leaves an invalid index behind, which IF NOT EXISTS would keep.
            *([_DROP_INDEX.format(index=index)] if valid is False else []),
            _CREATE_INDEX.format(index=index, columns=_COLUMNS[index]),
        )
        return True


def make_concurrently(engine: Engine, autocommit: Connection, index: str, *statements: str) -> None:
    """Run statements that make an index CONCURRENTLY. Raises `RowLockedError` where they wait for too long.

    No reader or writer of the table waits for them, so they may wait as long as other changes are retried.
    """
    try:
        autocommit.exec_driver_sql(f"SET lock_timeout = {int(PATIENCE_SECONDS * 1000)}")
        for statement in statements:
            autocommit.exec_driver_sql(statement)
    except DBAPIError as error:
        if failure_of(error) is not Failure.LOCKED:
            raise
        by = open_transactions(engine)
        raise RowLockedError(
            f"index {index}: waited {PATIENCE_SECONDS:g} s for transactions that were open before"
            + (f": {by}" if by else "")
        ) from error
    finally:
        if not autocommit.invalidated:
            autocommit.exec_driver_sql(f"SET lock_timeout = {LOCK_MILLISECONDS}")


def notifies(connection: Connection) -> bool:
    """Return whether a run that is inserted wakes who listens."""
    return bool(_trigger(connection))


def set_notify(engine: Engine, *, on: bool) -> None:
    """Make the trigger, or take it out. May be repeated. Raises `DatabaseError` where the table stays locked."""
    patiently(engine, "workflow_runs", lambda: (_add_trigger if on else _remove_trigger)(engine))


def _add_trigger(engine: Engine) -> None:
    with engine.begin() as connection:
        take_locks_soon(connection)
        connection.exec_driver_sql(_CREATE_FUNCTION)
        connection.exec_driver_sql(_REVOKE_FUNCTION)
        if not notifies(connection):
            connection.exec_driver_sql(_CREATE_TRIGGER)


def _remove_trigger(engine: Engine) -> None:
    with engine.begin() as connection:
        take_locks_soon(connection)
        if _trigger(connection) is not None:
            connection.exec_driver_sql(_DROP_TRIGGER)
        connection.exec_driver_sql(_DROP_FUNCTION)


def _trigger(connection: Connection) -> bool | None:
    """Return whether the trigger is switched on; None where there is none."""
    enabled: bool | None = connection.exec_driver_sql(TRIGGER_ENABLED).scalar()
    return enabled


def take_locks_soon(connection: Connection) -> None:
    """Have the statements of this transaction wait for no lock for longer than the API's inserts may."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
