"""The main process's half of an executor, on the event loop of the test itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.books import Books
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.workflows import KnownVersions
from orcheo_dispatch.worker.executor.protocol import Run, Waiting
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor


class LocalOutside:
    """What the executor of a runner asks, answered by the books at once: nothing crosses a socket."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._provided: dict[Claim, bytes] = {}

    def provide(self, claim: Claim, provided: bytes) -> None:
        """Keep what was read for a run."""
        self._provided[claim] = provided

    def provided(self, claim: Claim) -> bytes | None:
        """Return what was read for a run, once."""
        return self._provided.pop(claim, None)

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Have rows written."""
        return self._books.write(claim, rows, hasten=hasten)

    def resumed(self, tasks: int) -> None:
        """Count nothing."""

    def hasten(self) -> None:
        """Have what was given before written."""
        self._books.hasten()


class LocalExecutor:
    """Orcheo's executor with a main process's half beside it; an `Executor`."""

    def __init__(self, executor: OrcheoExecutor, books: Books, outside: LocalOutside) -> None:
        self.inner = executor
        self.books = books
        self.outside = outside
        self.running = 0
        self._known = KnownVersions()

    async def execute(self, run: Run) -> Mapping[str, Any] | None:
        """Read what the run executes and execute it."""
        self.running += 1
        try:
            provided = await self.books.provide(run, self._known.known_at(run.workflow_version_id))
            self._known.give(provided)
            self.outside.provide(run.claim, provided.encode())
            output = await self.inner.execute(run)
            assert not isinstance(output, Waiting)
            return output
        finally:
            self.running -= 1


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[LocalExecutor]:
    """Yield an executor that is prepared, open and attached, as in the first runner of a worker."""
    executor = OrcheoExecutor()
    # It has an event loop of its own, as before a fork.
    await asyncio.to_thread(executor.prepare)
    found = await executor.open()
    books = Books(dsn, running=lambda: local.running)
    outside = LocalOutside(books)
    local = LocalExecutor(executor, books, outside)
    await books.open()
    try:
        await executor.attach(outside, found)
        try:
            yield local
        finally:
            await executor.close()
    finally:
        await books.close()
