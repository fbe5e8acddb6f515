"""PgQueuer's side, in two ways.

`pgq run tests.bench.peers.pgqueuer_app:manager` is its own command. `python -m tests.bench.peers.pgqueuer_app` does as
its own benchmark does: several managers in one process, each on an asyncpg connection of its own, on uvloop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

ENTRYPOINT = "noop"


@asynccontextmanager
async def manager() -> AsyncIterator[PgQueuer]:
    """Yield a manager on a connection of its own."""
    connection = await asyncpg.connect(os.environ["BENCH_DSN"])
    try:
        made = PgQueuer(AsyncpgDriver(connection))
        made.entrypoint(ENTRYPOINT)(noop)
        yield made
    finally:
        await connection.close()


async def noop(_job: Job) -> None:
    """Do nothing."""


async def main() -> None:
    """Work until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(int(os.environ["BENCH_MANAGERS"])):
            tasks.create_task(_work(int(os.environ["BENCH_BATCH"]), stopping))


async def _work(batch: int, stopping: asyncio.Event) -> None:
    async with manager() as made:
        running = asyncio.create_task(made.run(batch_size=batch))
        await stopping.wait()
        made.shutdown.set()
        await running


if __name__ == "__main__":
    uvloop.run(main())
