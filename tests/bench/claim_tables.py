"""Databases with a backlog on the benchmark's server, for measuring claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.bench import backlog
from tests.bench.claimer import Claimers, Stretch
from tests.bench.setting import Setting
from tests.support.database.databases import Database, create, drop, make_orcheo_tables, migrate

STRETCH = 8
"""Claims in a timed stretch: so many that eight dispatchers have one each, so few that 10,000 pending runs last."""


@dataclass(frozen=True, slots=True)
class Table:
    """A database with a backlog, and a connection to look after it."""

    dsn: str
    connection: backlog.Connection

    def fill(self, pending: int) -> None:
        """Add so many pending runs."""
        backlog.add_pending(self.connection, pending)
        backlog.analyze(self.connection)

    def stretch(self, pool: Claimers, *, room: int, dispatchers: int = 1, by_policy: bool = False) -> Stretch:
        """Time a stretch of claims; then, untimed, end what was claimed and add as many pending runs."""
        stretch = pool.claim(self.dsn, dispatchers=dispatchers, claims=STRETCH, room=room, by_policy=by_policy)
        backlog.work_off(self.connection)
        backlog.add_pending(self.connection, stretch.runs)
        return stretch

    def value(self, query: str, *parameters: Any) -> Any:
        """Return the one value of a query."""
        ((value,),) = self.connection.execute(query, parameters).fetchall()
        return value


class Tables:
    """Makes databases, each a copy of one with Orcheo's tables and our schema, and drops them at the end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        url = self._setting.postgres.url
        self._admin = self._stack.enter_context(psycopg.connect(url, autocommit=True, application_name="bench"))
        self._empty = self._create()
        make_orcheo_tables(self._empty, self._setting.redis.url)
        migrate(self._empty)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, *, ended: int = 0) -> Table:
        """Make one with so many runs that have ended. Costs a checkpoint, so make all before the first is filled."""
        dsn = self._create(template=self._empty.name).dsn
        connection = self._stack.enter_context(psycopg.connect(dsn, autocommit=True, application_name="bench"))
        if ended:
            backlog.add_ended(connection, ended)
            backlog.vacuum(connection)
        return Table(dsn, connection)

    def _create(self, **template: str) -> Database:
        database = create(self._admin, self._setting.postgres.url, **template)
        self._stack.callback(drop, self._admin, database)
        return database


def without_checkpoints(setting: Setting) -> AbstractContextManager[None]:
    """Take a checkpoint, and let none come by itself until the end of the block."""
    return _altered(setting, max_wal_size="16GB", checkpoint_timeout="1h")


def without_page_images(setting: Setting) -> AbstractContextManager[None]:
    """Have no page written whole to the log until the end of the block, however long ago its last checkpoint was."""
    return _altered(setting, full_page_writes="off")


@contextmanager
def _altered(setting: Setting, **values: str) -> Iterator[None]:
    """Change settings of the server for a block. The checkpoint at both ends has its checkpointer read them."""
    for name, value in values.items():
        setting.rows(f"ALTER SYSTEM SET {name} = '{value}'")
    setting.rows("SELECT pg_reload_conf()")
    setting.rows("CHECKPOINT")
    try:
        yield
    finally:
        for name in values:
            setting.rows(f"ALTER SYSTEM RESET {name}")
        setting.rows("SELECT pg_reload_conf()")
        setting.rows("CHECKPOINT")
