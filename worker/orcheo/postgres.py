"""The connections of an executor: one bounded pool for all its runs, held for a statement and never for a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import DictRow, dict_row, scalar_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from shared import session
from shared.errors import DatabaseError
from shared.sqlstate import Failure, failure_of
from worker.orcheo.compat import connection_kwargs

POOL_SIZE = 8
"""Connections a process; the runs of a process wait for one, not for each other."""

_CHECKOUT_SECONDS = 30.0
_OUTAGE_SECONDS = 30.0
_SUSPECT_SECONDS = 60.0

_STATEMENT_MILLISECONDS = 300_000
_LOCK_MILLISECONDS = 60_000
"""Longer than elsewhere: nodes search in stores, and at its first start Orcheo makes tables and indexes."""
_PASSING = {Failure.OUTAGE, Failure.READ_ONLY, Failure.CONFLICT, Failure.LOCKED, Failure.TIMEOUT}

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


class Pool(AsyncConnectionPool[AsyncConnection[DictRow]]):
    """A pool that checks the connections that it hands out, save for statements that are repeated anyway."""

    _suspect_until = 0.0
    _pooled = False

    @asynccontextmanager
    async def connection_to_retry_on(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Yield a connection for one statement; it is checked only where another one failed within the last minute.

        Behind a pooler the statement is a transaction that says what it relies on: each has another session.
        """
        loop = asyncio.get_running_loop()
        token = _unchecked.set(loop.time() >= self._suspect_until)
        try:
            async with self.connection() as connection:
                if not self._pooled:
                    yield connection
                    return
                async with connection.transaction():
                    await connection.execute(session.set_local(connection.info.server_version).encode())
                    yield connection
        except psycopg.Error as error:
            if failure_of(error) in (Failure.OUTAGE, Failure.READ_ONLY):
                self._suspect_until = loop.time() + _SUSPECT_SECONDS
            raise
        finally:
            _unchecked.reset(token)

    async def prepare(self, connection: AsyncConnection[DictRow]) -> None:
        """Have a new connection rely on no default of the role, as far as it is a session of its own."""
        # What LangGraph's own transactions begin with, behind a pooler as well.
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        await connection.set_deferrable(False)
        self._pooled = not await prepare_session(
            connection,
            statement_timeout=_STATEMENT_MILLISECONDS,
            lock_timeout=_LOCK_MILLISECONDS,
            idle_session_timeout=0,
        )


def may_pass(error: BaseException) -> bool:
    """Return whether the same statement may succeed later: it met an outage, another transaction, or a timeout."""
    return isinstance(error, psycopg.Error) and failure_of(error) in _PASSING


outlast_outage = retry(
    retry=retry_if_exception(may_pass),
    stop=stop_after_delay(_OUTAGE_SECONDS),
    wait=wait_random_exponential(multiplier=0.1, max=2),
    reraise=True,
)
"""Repeat an idempotent statement while Postgres restarts, fails over, or rolls it back on account of others."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Postgres' time, read once and counted on from there: no host's clock says when something was."""

    read: datetime
    read_at: float
    """`time.monotonic()` then."""

    def now(self) -> datetime:
        """Return the time."""
        return self.read + timedelta(seconds=time.monotonic() - self.read_at)


async def prepare_session(connection: AsyncConnection[Any], **instead: int) -> bool:
    """Have a session rely on no default of the role; return False, and change nothing, where a pooler lends it.

    `instead` has other values for some of the settings of `shared/session.py`.
    """
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT pg_backend_pid()")
        if await cursor.fetchone() != connection.info.backend_pid:
            return False
        await cursor.execute(session.set_session(connection.info.server_version, **instead).encode())
    return True


async def open_pool(dsn: str) -> Pool:
    """Return an open pool; raises `DatabaseError` where Postgres cannot be reached.

    Connections are in autocommit and use no prepared statements, so that a transaction pooler may sit
    between; each is checked as it is handed out, so that no node gets one that the server has closed.
    """

    async def prepare(connection: AsyncConnection[DictRow]) -> None:
        await pool.prepare(connection)

    pool = Pool(
        dsn,
        connection_class=AsyncConnection[DictRow],
        kwargs=connection_kwargs(autocommit=True, row_factory=dict_row),
        min_size=1,
        max_size=POOL_SIZE,
        configure=prepare,
        check=_check_writable,
        timeout=_CHECKOUT_SECONDS,
        name="orcheo-executor",
        open=False,
    )
    try:
        await pool.open(wait=True, timeout=_CHECKOUT_SECONDS)
    except PoolTimeout as error:
        await pool.close()
        raise DatabaseError(f"no connection to Postgres within {_CHECKOUT_SECONDS:g} s") from error
    return pool


async def _check_writable(connection: AsyncConnection[DictRow]) -> None:
    """Raise where the connection is dead, or leads to a server that a failover has made read-only."""
    if _unchecked.get():
        return
    cursor = await connection.execute("SHOW transaction_read_only")
    row = await cursor.fetchone()
    if row is not None and row["transaction_read_only"] == "on":
        raise psycopg.OperationalError("the server is read-only")


@outlast_outage
async def fetch_all(pool: Pool, sql: str, parameters: dict[str, Any]) -> list[DictRow]:
    """Return the rows of a reading statement."""
    async with pool.connection_to_retry_on() as connection:
        cursor = await connection.execute(cast("Any", sql), parameters)
        return await cursor.fetchall()
