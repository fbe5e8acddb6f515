"""Bring a database up to date: schema `orcheo_dispatch` and two partial indexes on the API's table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_random

from shared.database import database_errors, open_engine
from shared.errors import DatabaseError, SchemaError, SettingsError
from shared.ledger import PENDING_INDEX, SCHEMA, TURNS_INDEX
from shared.settings import Settings

_LOCK_KEY = 0x0C4E_0D15
_LOCK_PATIENCE_SECONDS = 120

_RUNS_TABLE = "SELECT to_regclass('workflow_runs') IS NOT NULL"
_INDEX_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)"
# CONCURRENTLY: the API goes on inserting runs while it is built.
_CREATE_INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON workflow_runs ({columns}) WHERE status = 'pending'"
_DROP_INDEX = "DROP INDEX CONCURRENTLY IF EXISTS {index}"
_COLUMNS = {
    PENDING_INDEX: "created_at, id",
    TURNS_INDEX: "(COALESCE(workspace_id, '')), workflow_id, created_at, id",
}
INDEXES = tuple(_COLUMNS)
"""All that is ours in the API's table."""
_REVISION = f"SELECT version_num FROM {SCHEMA}.alembic_version"


@dataclass(frozen=True, slots=True)
class Migration:
    """What `migrate` found and did."""

    revision_before: str | None
    revision: str
    index_created: bool
    index_present: bool


def migrate(settings: Settings, *, index: bool = True) -> Migration:
    """Bring the schema to the newest revision and, with `index`, make the indexes on pending runs.

    Idempotent, and safe on several hosts at once: one goes first, the others wait and find it done.
    Touches nothing else of the API's. Raises `SchemaError` when Orcheo's tables are missing.
    """
    with (
        open_engine(settings, role="migrate", connections=3, migrates=True) as engine,
        database_errors(),
        _alone(engine),
        engine.connect() as connection,
    ):
        if not connection.scalar(text(_RUNS_TABLE)):
            raise SchemaError(
                "table workflow_runs is missing: start Orcheo's API once on this database, it creates its tables"
            )
        before = current_revision(connection)
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        connection.commit()
        command.upgrade(_config(connection), "head")
        connection.commit()
        after = current_revision(connection)
        connection.rollback()
        created = [name for name in INDEXES if index and _make_index(engine, name)]
        present = _indexes_are_valid(connection)
        assert after is not None
        return Migration(before, after, bool(created), present)


def migrate_back(settings: Settings, to: str) -> Migration:
    """Take the schema back to revision `to`, for an older release; the indexes on pending runs stay.

    Processes of this release refuse to start afterwards. Raises `SettingsError` for a revision that is none of this
    release's, and `SchemaError` where the database is not as far as that.
    """
    known = [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]
    if to not in known:
        raise SettingsError.wrong("--to", to, "one of " + ", ".join(sorted(known)))
    with (
        open_engine(settings, role="migrate", connections=3, migrates=True) as engine,
        database_errors(),
        _alone(engine),
        engine.connect() as connection,
    ):
        before = current_revision(connection)
        connection.rollback()
        if before not in known or known.index(before) > known.index(to):
            raise SchemaError(f"schema {SCHEMA} is at revision {before or 'none'}, which is not after {to}")
        command.downgrade(_config(connection), to)
        connection.commit()
        return Migration(before, to, index_created=False, index_present=_indexes_are_valid(connection))


def newest_revision() -> str:
    """Return the revision that this release needs."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None where our schema is not there."""
    if connection.scalar(text("SELECT to_regclass(:table) IS NULL"), {"table": f"{SCHEMA}.alembic_version"}):
        return None
    revision: str | None = connection.scalar(text(_REVISION))
    return revision


def index_is_valid(connection: Connection, index: str = PENDING_INDEX) -> bool | None:
    """Return whether this index on pending runs can be used; None where there is none."""
    valid: bool | None = connection.scalar(text(_INDEX_VALID), {"index": index})
    return valid


def _indexes_are_valid(connection: Connection) -> bool:
    return all(index_is_valid(connection, index) for index in INDEXES)


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "shared:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Hold the migration lock.

    It is tried for again and again rather than waited for: a session that waits holds a snapshot, and
    CREATE INDEX CONCURRENTLY waits for every snapshot, so the two would wait for each other for ever.
    """
    with engine.connect() as connection:
        locked = connection.execution_options(isolation_level="AUTOCOMMIT")

        def try_lock() -> bool:
            return bool(locked.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}))

        def give_up(_: object) -> bool:
            raise DatabaseError(f"another migration has been running for {_LOCK_PATIENCE_SECONDS} s")

        Retrying(
            retry=retry_if_result(lambda got: not got),
            wait=wait_random(0.05, 0.25),
            stop=stop_after_delay(_LOCK_PATIENCE_SECONDS),
            retry_error_callback=give_up,
        )(try_lock)
        try:
            yield
        finally:
            locked.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK_KEY})


def _make_index(engine: Engine, index: str) -> bool:
    """Make this index on pending runs where there is no valid one; return whether it was made."""
    with engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        valid = index_is_valid(autocommit, index)
        if valid:
            return False
        if valid is False:
            # An interrupted CONCURRENTLY leaves an invalid index behind, which IF NOT EXISTS would keep.
            autocommit.execute(text(_DROP_INDEX.format(index=index)))
        autocommit.execute(text(_CREATE_INDEX.format(index=index, columns=_COLUMNS[index])))
        return True
