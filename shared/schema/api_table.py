"""Our objects on the API's table: two indexes on pending runs and, on request, a trigger that notifies.

Nothing here imports Alembic: processes check for both at startup, and never migrate.
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
"""Channel of the notifications, in the database of the runs."""
TRIGGER = "orcheo_dispatch_wake"
_FUNCTION = f"{SCHEMA}.wake()"
_NOTIFY_KEY = 0x0C4E_0D16

_INDEX_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)"
# CONCURRENTLY, so that the API can insert runs while the index is built.
_CREATE_INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON workflow_runs ({columns}) WHERE status = 'pending'"
_DROP_INDEX = "DROP INDEX CONCURRENTLY IF EXISTS {index}"
_COLUMNS = {
    PENDING_INDEX: "created_at, id",
    TURNS_INDEX: "(COALESCE(workspace_id, '')), workflow_id, created_at, id",
}
INDEXES = tuple(_COLUMNS)
"""Names of our indexes."""

TRIGGER_ENABLED = (
    f"SELECT tgenabled <> 'D' FROM pg_trigger WHERE tgrelid = to_regclass('workflow_runs') AND tgname = '{TRIGGER}'"
)
"""Selects one boolean: false if the trigger was disabled by ALTER TABLE; no row if the trigger does not exist."""
# The trigger must not slow down inserts, so it does not notify in two cases; a poll finds the run in either:
# - Another open transaction notifies. Transactions that notify commit one after the other in the whole cluster, each
#   with its own flush to disk, which reduces the throughput with 32 clients to a twentieth. So only one at a time
#   notifies; a listener polls again a moment after a notification, for those that did not notify meanwhile.
# - The notification queue is half full. If it were full, a commit that notifies would fail. That takes a listening
#   session that stays in one transaction, and some hundred million notifications.
# Notifications with equal (here: empty) payloads are merged: at most one per transaction.
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
# A trigger executes its function whatever the rights of the inserting role; no role needs to call it directly.
_REVOKE_FUNCTION = f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC"
_CREATE_TRIGGER = (
    f"CREATE OR REPLACE TRIGGER {TRIGGER} AFTER INSERT ON workflow_runs FOR EACH STATEMENT EXECUTE FUNCTION {_FUNCTION}"
)
_DROP_TRIGGER = f"DROP TRIGGER {TRIGGER} ON workflow_runs"
_DROP_FUNCTION = f"DROP FUNCTION IF EXISTS {_FUNCTION}"


def index_is_valid(connection: Connection, index: str = PENDING_INDEX) -> bool | None:
    """Return whether this index on pending runs is valid; None if it does not exist."""
    valid: bool | None = connection.scalar(text(_INDEX_VALID), {"index": index})
    return valid


def indexes_are_valid(connection: Connection) -> bool:
    """Return whether all indexes on pending runs exist and are valid."""
    return all(index_is_valid(connection, index) for index in INDEXES)


def make_index(engine: Engine, index: str) -> bool:
    """Create this index on pending runs unless a valid one exists; return whether it was created.

    Raises `RowLockedError` if a transaction that was open before does not end in time.
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
            # An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index, which IF NOT EXISTS would keep.
            *([_DROP_INDEX.format(index=index)] if valid is False else []),
            _CREATE_INDEX.format(index=index, columns=_COLUMNS[index]),
        )
        return True


def make_concurrently(engine: Engine, autocommit: Connection, index: str, *statements: str) -> None:
    """Execute statements that create an index CONCURRENTLY. Raises `RowLockedError` if they wait for too long.

    They block no readers or writers of the table, so they may wait for as long as other changes are retried.
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
    """Return whether the insert of a run notifies the listeners."""
    return bool(_trigger(connection))


def set_notify(engine: Engine, *, on: bool) -> None:
    """Create or drop the trigger. Idempotent. Raises `DatabaseError` if the table stays locked."""
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
    """Return whether the trigger is enabled; None if it does not exist."""
    enabled: bool | None = connection.exec_driver_sql(TRIGGER_ENABLED).scalar()
    return enabled


def take_locks_soon(connection: Connection) -> None:
    """Limit how long this transaction's statements wait for a lock, because the API's inserts wait behind them."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
