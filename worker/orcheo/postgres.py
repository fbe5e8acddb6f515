"""The clock of a runner's runs, and connections that are opened when a node first needs one."""

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
"""Connections of one runner at most; its runs wait for one, not for each other."""
_NAME = "orcheo-dispatch runner"


class LazyPool(Pool):
    """A pool that opens when it is first asked for a connection; until then it has no connection and no task."""

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[DictRow]:
        """Return a connection."""
        await self.open()
        return await super().getconn(timeout)


def make_lazy_pool(dsn: str) -> LazyPool:
    """Return the pool of a runner."""
    return make_pool(LazyPool, dsn, name=_NAME, min_size=0, max_size=POOL_SIZE, arguments=_arguments())


def make_opening_pool(dsn: str) -> Pool:
    """Return the pool of the runner that looks whether everything fits, before any run."""
    return make_pool(Pool, dsn, name=_NAME, min_size=1, max_size=POOL_SIZE, arguments=_arguments())


def _arguments() -> dict[str, Any]:
    """Return Orcheo's own arguments of a connection, as its settings have them."""
    return connection_kwargs(autocommit=True, row_factory=dict_row)


@dataclass(frozen=True, slots=True)
class Clock:
    """Postgres' time, read once and advanced by a monotonic clock: never a host's clock."""

    read: datetime
    read_at: float
    """`time.monotonic()` then, in whichever process of this host."""

    def now(self) -> datetime:
        """Return the time."""
        return self.read + timedelta(seconds=time.monotonic() - self.read_at)
