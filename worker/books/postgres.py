"""Provide a bounded pool of connections for an event loop; one is held for a statement, never for a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import DictRow, dict_row, scalar_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from orcheo_dispatch.shared.database import session
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import DatabaseError

CONNECTION: Mapping[str, Any] = {
    "autocommit": True,
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "prepare_threshold": None,
}
"""Connection arguments: a dead connection is noticed within 15 s; nothing is prepared, as there may be a pooler."""

_CHECKOUT_SECONDS = 30.0
_OUTAGE_SECONDS = 30.0
_IDLE_SECONDS = 60.0
_SUSPECT_SECONDS = 60.0

_STATEMENT_MILLISECONDS = 300_000
_LOCK_MILLISECONDS = 60_000
"""Longer than elsewhere: nodes search in stores, and Orcheo creates tables and indexes at its first start."""
_PASSING = {Failure.OUTAGE, Failure.READ_ONLY, Failure.CONFLICT, Failure.LOCKED, Failure.TIMEOUT}

_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


class Pool(AsyncConnectionPool[AsyncConnection[DictRow]]):
    """A pool that checks the connections that it hands out, except for statements that are retried anyway."""

    _suspect_until = 0.0
    _pooled = False

    @asynccontextmanager
    async def connection_to_retry_on(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Yield a connection for one statement; it is checked only if another one failed within the last minute.

        Behind a pooler each statement is a transaction that sets what it relies on, since sessions change.
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
        """Make a new connection independent of the role's defaults, if it has a session of its own."""
        # The isolation level that LangGraph's own transactions begin with, also behind a pooler.
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
"""Retry an idempotent statement while Postgres restarts, fails over, or rolls it back because of other transactions."""


async def prepare_session(connection: AsyncConnection[Any], **instead: int) -> bool:
    """Make a session independent of the role's defaults; if it belongs to a pooler, change nothing and return False.

    `instead` has other values for some of the settings of `shared/database/session.py`.
    """
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute("SELECT pg_backend_pid()")
        if await cursor.fetchone() != connection.info.backend_pid:
            return False
        await cursor.execute(session.set_session(connection.info.server_version, **instead).encode())
    return True


def make_pool[P: Pool](
    kind: type[P], dsn: str, *, name: str, min_size: int, max_size: int, arguments: Mapping[str, Any] = CONNECTION
) -> P:
    """Return a pool that is not open yet; `arguments` are those of its connections.

    Each connection is checked when it is handed out, so that the caller never gets one that the server closed.
    """

    async def prepare(connection: AsyncConnection[DictRow]) -> None:
        await pool.prepare(connection)

    pool = kind(
        dsn,
        connection_class=AsyncConnection[DictRow],
        kwargs={**arguments, "row_factory": dict_row, "application_name": name},
        min_size=min_size,
        max_size=max_size,
        configure=prepare,
        check=_check_writable,
        timeout=_CHECKOUT_SECONDS,
        max_idle=_IDLE_SECONDS,
        name=name,
        open=False,
    )
    return pool


async def open_pool(pool: Pool) -> None:
    """Open a pool. Raises `DatabaseError` if Postgres cannot be reached."""
    try:
        await pool.open(wait=True, timeout=_CHECKOUT_SECONDS)
    except PoolTimeout as error:
        await pool.close()
        raise DatabaseError(f"no connection to Postgres within {_CHECKOUT_SECONDS:g} s") from error


async def _check_writable(connection: AsyncConnection[DictRow]) -> None:
    """Raise if the connection is dead, or if it leads to a server that a failover has made read-only."""
    if _unchecked.get():
        return
    cursor = await connection.execute("SHOW transaction_read_only")
    row = await cursor.fetchone()
    if row is not None and row["transaction_read_only"] == "on":
        raise psycopg.OperationalError("the server is read-only")


@outlast_outage
async def fetch_all(pool: Pool, sql: str, parameters: dict[str, Any]) -> list[DictRow]:
    """Return the rows of a statement that only reads."""
    async with pool.connection_to_retry_on() as connection:
        cursor = await connection.execute(cast("Any", sql), parameters)
        return await cursor.fetchall()
