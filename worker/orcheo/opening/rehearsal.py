"""Execute the built-in workflow on the tables of this database, to check that a run's rows can be stored.

All rows are written in transactions that are rolled back, so none is ever visible, even if the worker crashes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.postgres import Pool, may_pass
from orcheo_dispatch.worker.books.rows import Rows, execute_rows
from orcheo_dispatch.worker.orcheo.compat import AsyncPostgresSaver, SerializerProtocol
from orcheo_dispatch.worker.orcheo.opening.built_in import Perform, play
from orcheo_dispatch.worker.orcheo.opening.tables import said
from orcheo_dispatch.worker.orcheo.postgres import Clock
from orcheo_dispatch.worker.orcheo.saving.either import Saver
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.saving.own_saver import OwnSaver
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver

_SECONDS = 30.0
_TRACES = {"records", "changes", "steps"}


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a run's checkpoints or traces cannot be stored; None if they can."""

    checkpoints: str | None = None
    traces: str | None = None


async def rehearse(pool: Pool, serde: SerializerProtocol, perform: Perform, *, own_saver: bool) -> Refused:
    """Execute the built-in workflow twice and return what could not be stored.

    Raises `SettingsError` if it cannot be executed and `DatabaseError` if Postgres is unavailable.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            return await _rehearse(pool, serde, perform, own_saver=own_saver)
    except (TimeoutError, psycopg.Error) as error:
        raise DatabaseError(f"the built-in workflow was not executed: {type(error).__name__}") from error


async def _rehearse(pool: Pool, serde: SerializerProtocol, perform: Perform, *, own_saver: bool) -> Refused:
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(_rolled_back(pool))
        # LangGraph's saver may write at any time, also between the statements of the group commit.
        of_saver = await stack.enter_async_context(_rolled_back(pool)) if own_saver else connection
        clock = await _clock(connection)
        outside = _Recording(connection)
        savers: list[Saver] = []

        def make_saver(run_id: str, outbox: Outbox) -> Saver:
            saver = _Silent(of_saver, run_id, serde) if own_saver else RunSaver(connection, outbox, run_id, serde)
            savers.append(saver)
            return saver

        await play(perform, outside, make_saver, clock)
        _raise_outage(outside.outage, *(saver.error for saver in savers if isinstance(saver, OwnSaver)))
        refused = outside.refused
        for saver in savers:
            if isinstance(saver, OwnSaver):
                refused = Refused(_reason(saver.error) if saver.error else None, refused.traces)
            elif refused.checkpoints is None:
                refused = Refused(await _compare(saver, AsyncPostgresSaver(connection, serde=serde)), refused.traces)
        return refused


async def _compare(saver: RunSaver, langgraph: AsyncPostgresSaver) -> str | None:
    """Return None if LangGraph reads from our rows the checkpoint that it gave us, otherwise what is wrong."""
    config = saver.config()
    remembered = await saver.aget_tuple(config)
    try:
        stored = await langgraph.aget_tuple(config)
    except psycopg.Error as error:
        return _reason(error)
    return None if stored == remembered else "LangGraph does not read back the checkpoint that was written"


class _Recording:
    """Surroundings of the built-in workflow: writes on one connection and keeps refused rows without reporting them."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._scratch = _OneConnection(connection)
        self._writing: list[asyncio.Task[str | None]] = []
        self._turn = asyncio.Lock()
        self.refused = Refused()
        self.outage: Exception | None = None

    def provided(self, claim: Claim) -> bytes | None:  # noqa: ARG002 - of the protocol
        """Return None, since the workflow is built in."""
        return None

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:  # noqa: ARG002
        """Write the rows."""
        self._writing.append(asyncio.get_running_loop().create_task(self._write(rows)))
        return self._writing[-1]

    def resumed(self, tasks: int) -> None:
        """Do nothing: no run is continued."""

    def hasten(self) -> None:
        """Do nothing, since all rows are already being written."""

    async def close(self) -> None:
        """Wait until all rows are written."""
        await asyncio.gather(*self._writing)

    async def _write(self, rows: Rows) -> None:
        try:
            async with self._turn:
                await execute_rows(self._scratch, rows)
        except Exception as error:  # noqa: BLE001 - it is kept
            if may_pass(error):
                self.outage = error
            else:
                self._keep(rows, error)

    def _keep(self, rows: Rows, error: Exception) -> None:
        if _TRACES & rows.texts.keys():
            self.refused = Refused(self.refused.checkpoints, self.refused.traces or _reason(error))
        else:
            self.refused = Refused(self.refused.checkpoints or _reason(error), self.refused.traces)


class _OneConnection:
    """The part of a pool that the group commit needs: one connection, and a savepoint for each statement."""

    def __init__(self, connection: AsyncConnection[DictRow]) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection_to_retry_on(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        async with self._connection.transaction():
            yield self._connection


class _Silent(OwnSaver):
    """A saver whose error is read, not raised."""

    async def saved(self) -> None:
        """Do nothing."""


@asynccontextmanager
async def _rolled_back(pool: Pool) -> AsyncIterator[AsyncConnection[DictRow]]:
    async with pool.connection_to_retry_on() as connection, connection.transaction(force_rollback=True):
        yield connection


def _raise_outage(*errors: Exception | None) -> None:
    for error in errors:
        if error is not None and may_pass(error):
            raise error


async def _clock(connection: AsyncConnection[DictRow]) -> Clock:
    row = await (await connection.execute("SELECT clock_timestamp() AS now")).fetchone()
    assert row is not None
    return Clock(row["now"], time.monotonic())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {said(error)}" if isinstance(error, psycopg.Error) else type(error).__name__
