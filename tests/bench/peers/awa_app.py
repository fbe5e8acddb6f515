"""Awa's side: `python -m tests.bench.peers.awa_app`."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from typing import Any

import awa

QUEUE = "noop"


@dataclass
class Noop:
    """The arguments of a job."""

    body: dict[str, Any]
    headers: dict[str, Any]


async def main() -> None:
    """Work until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    client = awa.AsyncClient(os.environ["BENCH_DSN"])

    @client.task(Noop, queue=QUEUE)  # type: ignore[untyped-decorator]
    async def noop(_job: Any) -> None:
        """Do nothing."""

    await client.start([(QUEUE, int(os.environ["BENCH_CONCURRENCY"]))])
    await stopping.wait()
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
