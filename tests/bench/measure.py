"""The figures in the README, measured anew: `python -m tests.bench.measure`. About three minutes on two cores.

Real servers, the real API, our real processes; one worker process throughout. Machines differ and are noisy: the
figures say how large things are, not which of two is faster.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import psycopg
from psycopg.rows import dict_row

from ops.demo import WORKFLOW
from ops.demo.stack import OurProcess, demo_variables, wait_until_at_work
from ops.real.embedded import EmbeddedPostgres, EmbeddedRedis
from ops.real.orcheo_api import OrcheoApi
from shared.ledger import ProcessKind
from shared.migrate import migrate
from shared.settings import Settings

_DEADLINE_SECONDS = 180.0
_MEGABYTE = 1024 * 1024

_LATENCY = """
SELECT EXTRACT(epoch FROM begun_at - created_at)::float8 AS seconds
  FROM workflow_runs JOIN orcheo_dispatch.dispatch ON run_id = id
"""
_SPAN = "SELECT EXTRACT(epoch FROM max(settled_at) - min(begun_at))::float8 AS seconds FROM orcheo_dispatch.dispatch"


class Bench:
    """One database, one Redis, one API; each measurement begins with empty tables."""

    def __init__(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="orcheo-dispatch-measure-")))
        self.folder = folder
        self.postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        self.redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        self.api = stack.enter_context(OrcheoApi(self.postgres.url, self.redis.url, folder / "orcheo"))
        self.api.limit_runs(1_000_000)
        migrate(Settings.load(postgres_dsn=self.postgres.url, redis_url=self.redis.url))
        self.greet = self._workflow(WORKFLOW)
        self.wait = self._workflow(Path(__file__).with_name("wait.py"))

    @contextmanager
    def running(self, *kinds: ProcessKind, **variables: str) -> Iterator[list[OurProcess]]:
        """Start these processes of ours and wait until they are up."""
        with ExitStack() as stack:
            environment = {**demo_variables(self.api), **variables}
            folder = Path(stack.enter_context(TemporaryDirectory(dir=self.folder)))
            started = [stack.enter_context(OurProcess.start(kind, folder, environment)) for kind in kinds]
            wait_until_at_work(started)
            yield started

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with psycopg.connect(self.postgres.url, row_factory=dict_row, autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def empty(self) -> None:
        """Forget all runs."""
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute("TRUNCATE workflow_runs, orcheo_dispatch.dispatch")

    def fire(self, workflow_id: str, count: int) -> None:
        """Fire webhooks."""
        self.api.fire_webhooks(workflow_id, [{"name": f"Ada {n}"} for n in range(count)])

    def until_terminal(self) -> float:
        """Return the seconds until every run is terminal."""
        began = time.monotonic()
        self.until(lambda: not self.statuses().keys() & {"pending", "running"})
        return time.monotonic() - began

    def until(self, look: Callable[[], bool]) -> None:
        """Wait until `look` is true."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not look():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {self.statuses()}")
            time.sleep(0.05)

    def statuses(self) -> dict[str, int]:
        """Return the runs by status."""
        found = self.rows("SELECT status, count(*) AS runs FROM workflow_runs GROUP BY status")
        return {row["status"]: row["runs"] for row in found}

    def _workflow(self, source: Path) -> str:
        workflow_id = self.api.upload(source, source.stem)
        self.api.configure_webhook(workflow_id)
        return workflow_id


def trivial(bench: Bench) -> None:
    """400 runs that set one variable, all pending before the dispatcher starts."""
    bench.fire(bench.greet, 400)
    with (
        bench.running(ProcessKind.WORKER) as (worker,),
        bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER) as ours,
    ):
        bench.until_terminal()
        seconds = bench.rows(_SPAN)[0]["seconds"]
        print(f"400 trivial runs: {400 / seconds:.0f} runs/s, {bench.statuses()}")
        process = _process(worker)
        connections = sum(
            each.raddr and each.raddr.port == bench.postgres.port for each in process.net_connections("tcp")
        )
        others = [f"{each.kind} {_process(each).memory_info().rss / _MEGABYTE:.0f} MB" for each in ours]
        print(f"worker: {process.memory_info().rss / _MEGABYTE:.0f} MB, {connections} connections; {', '.join(others)}")


def latency(bench: Bench) -> None:
    """60 webhooks, one after the other, on an idle stack."""
    with bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER, ProcessKind.WORKER):
        bench.fire(bench.greet, 5)
        bench.until_terminal()
        bench.empty()
        for n in range(60):
            bench.api.fire_webhook(bench.greet, {"name": str(n)})
            time.sleep(0.1)
        bench.until_terminal()
        waits = [row["seconds"] * 1000 for row in bench.rows(_LATENCY)]
        p50, p95 = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
        print(f"commit to begin, idle: p50 {p50:.0f} ms, p95 {p95:.0f} ms")
        bench.empty()
        bench.fire(bench.greet, 60)
        print(f"60 webhooks at once: all terminal {bench.until_terminal():.1f} s after the last one")


def waiting(bench: Bench) -> None:
    """200 runs that wait 2 s each, in one process."""
    bench.fire(bench.wait, 200)
    with (
        bench.running(ProcessKind.WORKER, ORCHEO_WORKER_CONCURRENCY="200") as (worker,),
        bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER),
    ):
        bench.until_terminal()
        memory = _process(worker).memory_info().rss / _MEGABYTE
        seconds = bench.rows(_SPAN)[0]["seconds"]
        print(f"200 runs that wait 2 s: {seconds:.1f} s, worker {memory:.0f} MB, {bench.statuses()}")


def killed(bench: Bench) -> None:
    """A worker killed with two runs in flight."""
    with bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER):
        with bench.running(ProcessKind.WORKER) as (worker,):
            bench.fire(bench.wait, 2)
            bench.until(lambda: bench.statuses().get("running") == 2)
            worker.process.send_signal(signal.SIGKILL)
        print(f"kill -9 with 2 runs in flight: terminal after {bench.until_terminal():.0f} s, {bench.statuses()}")


def flushed(bench: Bench) -> None:
    """Redis killed, and back empty, with 34 runs queued."""
    with bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER):
        bench.fire(bench.greet, 34)
        published = "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'published'"
        bench.until(lambda: len(bench.rows(published)) == 34)
        bench.redis.kill()
        bench.redis.start()
        with bench.running(ProcessKind.WORKER):
            print(f"Redis back empty, 34 queued: terminal after {bench.until_terminal():.0f} s, {bench.statuses()}")


def restarted(bench: Bench) -> None:
    """Postgres killed and restarted under load."""
    with bench.running(ProcessKind.BEAT, ProcessKind.DISPATCHER, ProcessKind.WORKER):
        bench.fire(bench.wait, 80)
        bench.until(lambda: bench.statuses().get("running", 0) >= 20)
        bench.postgres.kill()
        bench.postgres.start()
        print(f"Postgres restarted, 80 runs: terminal after {bench.until_terminal():.0f} s, {bench.statuses()}")


def main() -> None:
    """Measure all, one after the other."""
    with ExitStack() as stack:
        bench = Bench(stack)
        for measure in (trivial, latency, waiting, killed, flushed, restarted):
            bench.empty()
            measure(bench)


def _process(ours: OurProcess) -> psutil.Process:
    return psutil.Process(ours.process.pid)


if __name__ == "__main__":
    main()
