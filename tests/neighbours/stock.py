"""The same runs under Orcheo's own Celery worker: what bad neighbours do to good runs there.

Each run has a process to itself, of `PROCESSES`, so fewer good runs wait than beside our worker. There is no ledger:
how late a run is comes from the run itself, and of attempts nothing is known. Beat is left out: no run comes of cron.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from orcheo_dispatch.ops.sandbox.child import end, launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from tests.faults.ground import Ground
from tests.faults.workload import HINT_TASK, Workflow
from tests.neighbours.cases import Case
from tests.neighbours.measure import Harm, measure
from tests.neighbours.trial import Found
from tests.support.database.databases import Database
from tests.support.database.runs import everything, insert_runs, one
from tests.support.processes.processes import ROOT

STOCK = "stock"
PROCESSES = 6
WAITING = 3
WORKFLOW = Path(__file__).parent / "workflows" / "act.py"
_PATIENCE_SECONDS = 20.0
_READY_SECONDS = 120.0
_UNENDED = "SELECT count(*) FROM workflow_runs WHERE id = ANY (%s) AND status IN ('pending', 'running')"
_ROWS = """
SELECT r.status, r.payload ->> 'error' AS error, false AS slot_due, r.status <> 'pending' AS begun, 0 AS attempts,
       0 AS repeats,
       EXTRACT(EPOCH FROM (r.payload ->> 'completed_at')::timestamptz - w.at)::float8 - w.takes AS late
  FROM unnest(%s::text[], %s::timestamptz[], %s::float8[]) AS w(id, at, takes)
  JOIN workflow_runs AS r ON r.id = w.id
"""


@dataclass(slots=True)
class StockWave:
    """Runs that are inserted and pushed as the API does it, of one workflow."""

    database: Database
    workflow: Workflow
    api: Celery
    slots: redis.Redis
    ids: list[str] = field(default_factory=list)
    at: list[Any] = field(default_factory=list)
    takes: list[float] = field(default_factory=list)

    def add(self, count: int, *, seconds: float, workspace_id: str = "", do: str = "wait") -> None:
        """Insert runs that take so long; all are of the one workspace that the workflow is in."""
        (at,) = one(self.database, "SELECT clock_timestamp() AS at").values()
        self.ids += self.push(count, do=do, seconds=seconds)
        self.at += [at] * count
        self.takes += [seconds] * count

    def push(self, count: int, **inputs: Any) -> list[str]:
        """Insert runs with these inputs, take a slot for each, and push them."""
        workflow = self.workflow
        added = insert_runs(
            self.database,
            count,
            workspace_id=workflow.workspace_id,
            workflow_id=workflow.workflow_id,
            version_id=workflow.version_id,
            inputs=inputs,
        )
        for run_id in added:
            self.slots.incr(f"orcheo:workspace:runs:{workflow.workspace_id}")
            self.api.send_task(
                HINT_TASK, args=(run_id,), headers={"workspace_id": workflow.workspace_id}, queue="celery"
            )
        return added

    def rows(self) -> Sequence[dict[str, Any]]:
        """Return what has become of them so far."""
        return everything(self.database, _ROWS, self.ids, self.at, self.takes)

    def taken(self) -> int:
        """Return how many slots of the workspace are taken."""
        count: Any = self.slots.get(f"orcheo:workspace:runs:{self.workflow.workspace_id}")
        return int(count or 0)

    def unended(self, ids: Sequence[str]) -> int:
        """Return how many of these runs have not ended."""
        return int(one(self.database, _UNENDED, list(ids))["count"])


def carry_out(ground: Ground, cases: Sequence[Case], *, seconds: float = 3.0) -> Iterator[Found]:
    """Yield what each case did that is the code of a run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcheo-dispatch-neighbours-stock-")))
        database = stack.enter_context(ground.database())
        broker = stack.enter_context(EmbeddedRedis(folder / "redis"))
        slots = stack.enter_context(closing(redis.Redis.from_url(broker.url)))
        api = stack.enter_context(closing(Celery("api", broker=broker.url, set_as_current=False)))

        def fresh() -> StockWave:
            return StockWave(database, ground.workflow, api, slots)

        worker = stack.enter_context(_stopped(_Worker(folder, database, broker.url)))
        usual = 0.0
        for case in cases:
            if not case.repeats:
                continue
            if not worker.is_alive or not _is_well(fresh()):
                slots.flushdb()
                worker.restart()
                _warm(fresh())
                usual = max(0.0, _harm(fresh(), "echo", seconds, 0.0)[0].worst)
            harm, unended = _harm(fresh(), case.name, seconds, usual)
            yield Found(case.name, STOCK, "", harm)
            if unended:
                worker.stop()


def _harm(good: StockWave, do: str, seconds: float, usual: float) -> tuple[Harm, int]:
    """Return what two runs of a kind do to good ones, and how many of all have not ended."""
    everyone: list[str] = []
    before = good.taken()

    @contextmanager
    def bad() -> Iterator[None]:
        everyone.extend(good.push(2, do=do))
        yield

    harm = measure(good, bad=bad, waiting=WAITING, seconds=seconds, patience=_PATIENCE_SECONDS, usual=usual)
    unended = good.unended([*good.ids, *everyone])
    # A run that has not ended keeps its slot, whoever it is.
    leaked = max(0, good.taken() - before - unended) + good.unended(good.ids)
    return Harm(
        harm.failed, harm.unfinished, delayed=harm.delayed, leaked=leaked, worst=harm.worst, why=harm.why
    ), unended


def _warm(wave: StockWave) -> None:
    """Have each process import Orcheo, which it does at its first run."""
    for _ in range(2):
        wave.add(PROCESSES, seconds=1.0)
        _wait(wave, _READY_SECONDS)


def _is_well(wave: StockWave) -> bool:
    """Tell whether every process executes runs."""
    wave.add(2 * PROCESSES, seconds=0.2)
    _wait(wave, 5.0)
    return all(row["status"] == "succeeded" for row in wave.rows())


def _wait(wave: StockWave, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while wave.unended(wave.ids) and time.monotonic() < deadline:
        time.sleep(0.1)


@contextmanager
def _stopped(worker: _Worker) -> Iterator[_Worker]:
    try:
        yield worker
    finally:
        worker.stop()


class _Worker:
    """The stock worker, with its child processes."""

    def __init__(self, folder: Path, database: Database, broker_url: str) -> None:
        self._folder = folder
        self._environment = process_environment(
            {**orcheo_environment(database.dsn, broker_url, folder), "PYTHONPATH": str(ROOT)}
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its main process runs."""
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """Start it, in place of the one before."""
        self.stop()
        command = [sys.executable, "-m", "celery", "-A", "orcheo_backend.worker.celery_app", "worker"]
        self._process = launch(
            [*command, f"--concurrency={PROCESSES}", "--loglevel=WARNING"],
            log=self._folder / "worker.log",
            environment=self._environment,
            directory=self._folder,
        )

    def stop(self) -> None:
        """End it with its children, at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            # It leads a group of its own; children that were stopped or ignore signals end as well.
            os.killpg(self._process.pid, signal.SIGKILL)
        end(self._process)
        self._process = None
