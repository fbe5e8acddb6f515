"""One run in a process of a fork server that has the executor.

`python -m tests.support.runners.forked_runner RUN` prints what it cost.

`RUN` is the run as JSON. The parent is the main process's half, with the books; the child has one socket to it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import NO_RULES, Run
from orcheo_dispatch.worker.books.books import Books
from orcheo_dispatch.worker.books.rows import Rows

_OTHERS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process has used since its start."""

    cpu_ms: float
    private_kb: int

    @classmethod
    def now(cls) -> Cost:
        """Return that of this process."""
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        return cls(round(time.process_time() * 1000, 1), private)


class PipeOutside:
    """An outside at the end of a pipe."""

    def __init__(self, pipe: Connection, provided: bytes | None) -> None:
        self._pipe = pipe
        self._provided = provided
        self._answers: list[asyncio.Future[str | None]] = []
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._read)

    def provided(self, claim: Claim) -> bytes | None:
        """Return what was read for the run."""
        return self._provided

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Send rows."""
        self._pipe.send((claim, rows, hasten))
        self._answers.append(asyncio.get_running_loop().create_future())
        return self._answers[-1]

    def resumed(self, tasks: int) -> None:
        """Count nothing."""

    def hasten(self) -> None:
        """Send nothing: the parent hastens by itself."""

    def _read(self) -> None:
        self._answers.pop(0).set_result(self._pipe.recv())


def find(pipe: Connection) -> None:
    """Be the first runner of a worker."""
    from tests.support.runners.forked_preload import EXECUTOR

    pipe.send(asyncio.run(EXECUTOR.open()))


def execute(pipe: Connection, found: bytes, provided: bytes, run: Run) -> None:
    """Be a runner with one run."""
    from tests.support.runners.forked_preload import EXECUTOR, IMPORTED, PREPARED

    async def measured() -> dict[str, Any]:
        started = Cost.now()
        modules = set(sys.modules)
        outside = PipeOutside(pipe, provided)
        await EXECUTOR.attach(outside, found)
        attached = Cost.now()
        new = sorted(set(sys.modules) - modules)
        output = await EXECUTOR.execute(run)
        # The parent counts connections now.
        pipe.send(None)
        executed = Cost.now()
        lazily = sorted(set(sys.modules) - modules)
        await EXECUTOR.execute(replace(run, run_id=str(uuid4())))
        again = Cost.now()
        await EXECUTOR.close()
        return {
            "imported": asdict(IMPORTED),
            "prepared": asdict(PREPARED),
            "started": asdict(started),
            "attached": asdict(attached),
            "executed": asdict(executed),
            "again": asdict(again),
            "closed": asdict(Cost.now()),
            "attach_imports": new,
            "run_imports": lazily,
            "output": bool(output),
        }

    pipe.send(asyncio.run(_profiled(measured)) if "PROFILE" in os.environ else asyncio.run(measured()))


async def _profiled(measured: Callable[[], Any]) -> Any:
    import cProfile

    with cProfile.Profile() as profile:
        result = await measured()
    profile.dump_stats(os.environ["PROFILE"])
    return result


async def _serve(pipe: Connection, books: Books, count: Callable[[], int]) -> dict[str, Any]:
    """Answer a runner until it says what it has measured."""
    connections = 0
    while True:
        said = await asyncio.to_thread(pipe.recv)
        if said is None:
            connections = count()
        elif isinstance(said, dict):
            return {**said, "connections": connections}
        else:
            claim, rows, hasten = said
            pipe.send(await books.write(claim, rows, hasten=hasten))


async def main(run: Run, dsn: str) -> dict[str, Any]:
    """Open the executor in a first runner, then execute the run in a second one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.runners.forked_preload"])
    here, there = context.Pipe()
    context.Process(target=find, args=[there]).start()
    there.close()
    found = await asyncio.to_thread(here.recv)
    here, there = context.Pipe()
    books = Books(dsn, running=lambda: 1)
    await books.open()
    provided = await books.provide(run, None)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def others() -> int:
            row = connection.execute(_OTHERS).fetchone()
            assert row is not None
            return int(row[0])

        before = others()
        runner = context.Process(target=execute, args=[there, found, provided.encode(), run])
        runner.start()
        there.close()
        cost = await _serve(here, books, lambda: others() - before)
        runner.join()
    await books.close()
    return {**cost, "exit": runner.exitcode}


if __name__ == "__main__":
    told = json.loads(sys.argv[1]) | {"rules": NO_RULES}
    print(json.dumps(asyncio.run(main(Run(**told), os.environ["ORCHEO_POSTGRES_DSN"]))))
