"""The clock of a runner's runs, and connections that are opened only when a node first needs one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row

from orcheo_dispatch.worker.books.postgres import Pool, make_pool
from orcheo_dispatch.worker.orcheo.compat import connection_kwargs

POOL_SIZE = 8
"""Maximum number of connections of a runner; its runs wait for a connection, not for each other."""
_NAME = "orcheo-dispatch runner"


class LazyPool(Pool):
    """A pool that opens when a connection is first requested; until then it has no connection and no task."""

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[DictRow]:
        """Return a connection."""
        await self.open()
        return await super().getconn(timeout)


def make_lazy_pool(dsn: str) -> LazyPool:
    """Return the pool of a runner."""
    return make_pool(LazyPool, dsn, name=_NAME, min_size=0, max_size=POOL_SIZE, arguments=_arguments())


def make_opening_pool(dsn: str) -> Pool:
    """Return the pool of the runner that checks the tables before any run."""
    return make_pool(Pool, dsn, name=_NAME, min_size=1, max_size=POOL_SIZE, arguments=_arguments())


def _arguments() -> dict[str, Any]:
    """Return the connection arguments of Orcheo's settings."""
    return connection_kwargs(autocommit=True, row_factory=dict_row)


@dataclass(frozen=True, slots=True)
class Clock:
    """Postgres' time, read once and advanced by a monotonic clock. Never uses the host's wall clock."""

    read: datetime
    read_at: float
    """`time.monotonic()` at that time, which is the same in all processes of this host."""

    def now(self) -> datetime:
        """Return the time."""
        return self.read + timedelta(seconds=time.monotonic() - self.read_at)
