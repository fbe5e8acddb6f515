"""PgQueuer's side: `python -m tests.bench.peers.pgqueuer_app`.

As its own benchmark does it: managers in one process, each on an asyncpg connection of its own, on uvloop. Not by its
command `pgq run`, which ends at once with the typer that Orcheo takes.
"""

from __future__ import annotations

import asyncio
import os
import signal

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

ENTRYPOINT = "noop"


async def main() -> None:
    """Work until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(int(os.environ["BENCH_MANAGERS"])):
            tasks.create_task(_work(int(os.environ["BENCH_BATCH"]), stopping))


async def noop(_job: Job) -> None:
    """Do nothing."""


async def _work(batch: int, stopping: asyncio.Event) -> None:
    connection = await asyncpg.connect(os.environ["BENCH_DSN"])
    manager = PgQueuer(AsyncpgDriver(connection))
    manager.entrypoint(ENTRYPOINT)(noop)
    running = asyncio.create_task(manager.run(batch_size=batch))
    await stopping.wait()
    manager.shutdown.set()
    await running
    await connection.close()


if __name__ == "__main__":
    uvloop.run(main())
