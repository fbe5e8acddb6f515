"""Create the tables that Orcheo and LangGraph create on first use, in one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
from psycopg.rows import tuple_row
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.books.postgres import may_pass, prepare_session
from orcheo_dispatch.worker.orcheo.compat import connection_kwargs

Create = Callable[[], Awaitable[object]]

# Two arbitrary numbers; the dispatcher's migrations have their own.
_LOCK = (0x4F44_5350, 1)
_LOCK_POLL_SECONDS = 0.1
_LOCK_PATIENCE_SECONDS = 60.0
_RACE_SECONDS = 60.0


_LOST_RACES = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateColumn,
    psycopg.errors.InternalError_,
)


def _may_pass(error: BaseException) -> bool:
    """Return whether another attempt may succeed, e.g. after an outage, but not if a column is missing."""
    return may_pass(error) or isinstance(error, _LOST_RACES)


async def create_tables(dsn: str, creates: list[Create]) -> None:
    """Await each of `creates` in order, one process at a time; each does nothing if its tables exist.

    The API creates some of the same tables without our lock, so a lost race is retried. If Postgres rejects one of
    them, the others are still awaited; then the first such error is raised.
    """
    refused: psycopg.Error | None = None
    async with _alone(dsn):
        for create in creates:
            try:
                await _outlast_race(create)
            except psycopg.Error as error:
                if _may_pass(error):
                    raise
                refused = refused or error
    if refused is not None:
        raise refused


@retry(
    retry=retry_if_exception(_may_pass),
    stop=stop_after_delay(_RACE_SECONDS),
    wait=wait_random_exponential(multiplier=0.1, max=2),
    reraise=True,
)
async def _outlast_race(create: Create) -> None:
    await create()


@asynccontextmanager
async def _alone(dsn: str) -> AsyncIterator[None]:
    """Hold the advisory lock of this module on its own connection; after a time limit, continue without it.

    The lock is polled for. A blocking `pg_advisory_lock` would wait with an open snapshot, LangGraph's
    CREATE INDEX CONCURRENTLY waits for every snapshot, and the two would deadlock. Behind a transaction pooler
    the lock may stay with a server session, hence the time limit.
    """
    kwargs = connection_kwargs(autocommit=True, row_factory=tuple_row)
    async with await psycopg.AsyncConnection.connect(dsn, **kwargs) as connection:
        # The session is idle while tables are created; an idle session timeout would release the lock.
        await prepare_session(connection, idle_session_timeout=0)
        locked = await _try_lock(connection)
        try:
            yield
        finally:
            if locked and not connection.broken:
                await connection.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK)


async def _try_lock(connection: psycopg.AsyncConnection) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LOCK_PATIENCE_SECONDS
    while loop.time() < deadline:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK)
        if await cursor.fetchone() == (True,):
            return True
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    log.warning("schema_lock_unavailable", patience_s=_LOCK_PATIENCE_SECONDS)
    return False
