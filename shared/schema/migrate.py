"""Bring a database up to date: schema `orcheo_dispatch`, indexes and triggers on the API's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_random

from orcheo_dispatch.shared.database.connections import database_errors, open_engine
from orcheo_dispatch.shared.database.ddl import patiently
from orcheo_dispatch.shared.errors import DatabaseError, SchemaError, SettingsError
from orcheo_dispatch.shared.ledger.model import SCHEMA
from orcheo_dispatch.shared.schema import parts
from orcheo_dispatch.shared.schema.api_table import (
    INDEXES,
    indexes_are_valid,
    make_concurrently,
    make_index,
    notifies,
    set_notify,
)
from orcheo_dispatch.shared.schema.begin_guard import set_guard
from orcheo_dispatch.shared.schema.live_index import replace_index
from orcheo_dispatch.shared.schema.revision import current_revision
from orcheo_dispatch.shared.schema.views import NEW, create_tables, create_views, remove_views
from orcheo_dispatch.shared.settings.model import Settings

_LOCK_KEY = 0x0C4E_0D15
_LOCK_PATIENCE_SECONDS = 120
_GUARDED_SINCE = "0004"
"""The revision that introduced the trigger that prevents a run from beginning twice."""

_RUNS_TABLE = "SELECT to_regclass('workflow_runs') IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Migration:
    """What `migrate` found and did."""

    revision_before: str | None
    revision: str
    index_created: bool
    index_present: bool
    notify: bool
    """Whether the insert of a run wakes the dispatchers that listen."""
    made_again: tuple[str, ...] = ()
    """Views, indexes and functions of our schema that had been dropped and were created again."""


def migrate(settings: Settings, *, index: bool = True, notify: bool | None = None) -> Migration:
    """Upgrade the schema to the newest revision and, with `index`, create the indexes on pending runs.

    `notify` creates or drops the trigger that wakes dispatchers at each insert; None leaves it as it is. The trigger
    that prevents a run from beginning twice is always created.

    Idempotent, and safe on several hosts at once: one goes first, the others wait and find it done.
    Changes nothing else of the API's. Raises `SchemaError` if Orcheo's tables are missing, and `SettingsError` if the
    connection goes through a pooler: a session lock would stay with a connection of the pool.
    """
    with (
        open_engine(settings, role="migrate", connections=4, migrates=True) as engine,
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
        _change(engine, connection, lambda: command.upgrade(_config(connection), "head"))
        after = current_revision(connection)
        gone = parts.missing(connection)
        _change(engine, connection, lambda: create_tables(connection))
        made_again = _make_again(engine, connection, gone)
        _change(engine, connection, lambda: create_views(connection))
        set_guard(engine, on=True)
        if notify is not None:
            set_notify(engine, on=notify)
        # Last, because they may wait for a long time and nothing else needs them.
        created = [name for name in INDEXES if index and make_index(engine, name)]
        replace_index(engine)
        present = indexes_are_valid(connection)
        assert after is not None
        return Migration(before, after, bool(created), present, notifies(connection), made_again)


def migrate_back(settings: Settings, to: str) -> Migration:
    """Downgrade the schema to revision `to`, for an older release; keep the indexes on pending runs.

    Drop the trigger that notifies and, if `to` is before 0004, the trigger that prevents a run from beginning twice: an
    older release cannot drop them.
    Processes of this release refuse to start afterwards. Raises `SettingsError` for a revision that is not one of this
    release's, and `SchemaError` if the database is not at `to` or a later one.
    """
    known = [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]
    if to not in known:
        raise SettingsError.wrong("--to", to, "one of " + ", ".join(sorted(known)))
    with (
        open_engine(settings, role="migrate", connections=4, migrates=True) as engine,
        database_errors(),
        _alone(engine),
        engine.connect() as connection,
    ):
        before = current_revision(connection)
        connection.rollback()
        if before not in known or known.index(before) > known.index(to):
            raise SchemaError(f"schema {SCHEMA} is at revision {before or 'none'}, which is not after {to}")
        set_notify(engine, on=False)
        set_guard(engine, on=to >= _GUARDED_SINCE)
        if to != before:
            _change(engine, connection, lambda: remove_views(connection))
        _change(engine, connection, lambda: command.downgrade(_config(connection), to))
        return Migration(
            before, to, index_created=False, index_present=indexes_are_valid(connection), notify=notifies(connection)
        )


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "orcheo_dispatch.shared.schema:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _change(engine: Engine, connection: Connection, change: Callable[[], None]) -> None:
    """Migrate: each revision is one transaction, so that a retry continues where the previous attempt stopped."""

    def attempt() -> None:
        try:
            change()
            connection.commit()
        finally:
            connection.rollback()

    patiently(engine, f"schema {SCHEMA}", attempt)


def _make_again(engine: Engine, connection: Connection, gone: list[str]) -> tuple[str, ...]:
    """Create views, indexes and functions again that were dropped; return their names.

    Their definitions are read from a schema that is created from scratch in a transaction that is rolled back.
    """
    if set(gone) <= NEW:
        # Not dropped: the last release did not have them. They are created with the views of this one.
        return ()
    missing = parts.missing(connection)
    connection.rollback()

    def read() -> dict[str, str]:
        with connection.begin() as anew:
            connection.exec_driver_sql(f"ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_aside")
            connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
            command.upgrade(_config(connection), "head")
            create_tables(connection)
            create_views(connection)
            definitions = parts.definitions(connection)
            anew.rollback()
        return definitions

    definitions = patiently(engine, f"schema {SCHEMA}", read)
    definitions = {name: definition for name, definition in definitions.items() if name in missing}

    def make() -> None:
        with connection.begin():
            for name, definition in definitions.items():
                if name not in parts.INDEXES:
                    connection.exec_driver_sql(definition)

    patiently(engine, f"schema {SCHEMA}", make)
    with engine.connect() as other:
        autocommit = other.execution_options(isolation_level="AUTOCOMMIT")
        for name, definition in definitions.items():
            if name in parts.INDEXES:
                # The ledger is written to while the index is built.
                make_concurrently(engine, autocommit, name, definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1))
    return tuple(gone)


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Hold the migration lock.

    Try repeatedly to get it instead of waiting for it: a session that waits holds a snapshot, and
    CREATE INDEX CONCURRENTLY waits for every snapshot, so the two would wait for each other forever.
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
