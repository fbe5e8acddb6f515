"""A trigger on the API's table that prevents a run from beginning twice.

Orcheo begins a run by reading it, checking that it is pending and writing all of it back, in several transactions. If
one of our workers begins the run in between, both would execute it, and the second start would overwrite the first.
The trigger refuses the second start: Orcheo's transaction fails, and Orcheo does not execute the run.

It fires only for an update that sets a run to running that is not pending: for none of ours, and no other of the API's.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.ddl import patiently
from orcheo_dispatch.shared.ledger.model import SCHEMA
from orcheo_dispatch.shared.schema.api_table import take_locks_soon

TRIGGER = "orcheo_dispatch_begin_once"
_FUNCTION = f"{SCHEMA}.begin_once()"

_ENABLED = (
    f"SELECT tgenabled <> 'D' FROM pg_trigger WHERE tgrelid = to_regclass('workflow_runs') AND tgname = '{TRIGGER}'"
)
# Guards only runs that one of our workers has begun; how other workers share runs is not our concern. Executed with the
# rights of its owner, because the API's role may not read the ledger.
_CREATE_FUNCTION = f"""
CREATE OR REPLACE FUNCTION {_FUNCTION} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM {SCHEMA}.dispatch AS d WHERE d.run_id = NEW.id AND d.attempts > 0) THEN
        RAISE EXCEPTION USING
            MESSAGE = 'a worker of orcheo-dispatch has begun run ' || NEW.id,
            ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Set ORCHEO_INPROCESS_EXECUTION=false for the API, and stop Orcheo''s own worker.';
    END IF;
    RETURN NULL;
END $$
"""
_REVOKE_FUNCTION = f"REVOKE ALL ON FUNCTION {_FUNCTION} FROM PUBLIC"
# AFTER UPDATE, because a BEFORE trigger would lock each updated row once more.
_CREATE_TRIGGER = f"""
CREATE OR REPLACE TRIGGER {TRIGGER} AFTER UPDATE OF status ON workflow_runs FOR EACH ROW
  WHEN (NEW.status = 'running' AND OLD.status <> 'pending'
        AND NEW.payload ->> 'started_at' IS DISTINCT FROM OLD.payload ->> 'started_at')
  EXECUTE FUNCTION {_FUNCTION}
"""
_DROP_TRIGGER = f"DROP TRIGGER {TRIGGER} ON workflow_runs"
_DROP_FUNCTION = f"DROP FUNCTION IF EXISTS {_FUNCTION}"


def guards_begins(connection: Connection) -> bool:
    """Return whether the trigger refuses second starts of runs."""
    return bool(_enabled(connection))


def set_guard(engine: Engine, *, on: bool) -> None:
    """Create or drop the trigger. Idempotent. Raises `DatabaseError` if the table stays locked."""
    patiently(engine, "workflow_runs", lambda: (_add if on else _remove)(engine))


def _add(engine: Engine) -> None:
    with engine.begin() as connection:
        take_locks_soon(connection)
        connection.exec_driver_sql(_CREATE_FUNCTION)
        connection.exec_driver_sql(_REVOKE_FUNCTION)
        if not guards_begins(connection):
            connection.exec_driver_sql(_CREATE_TRIGGER)


def _remove(engine: Engine) -> None:
    with engine.begin() as connection:
        take_locks_soon(connection)
        if _enabled(connection) is not None:
            connection.exec_driver_sql(_DROP_TRIGGER)
        connection.exec_driver_sql(_DROP_FUNCTION)


def _enabled(connection: Connection) -> bool | None:
    """Return whether the trigger is enabled; None if it does not exist."""
    enabled: bool | None = connection.exec_driver_sql(_ENABLED).scalar()
    return enabled
