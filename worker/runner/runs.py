"""Execute the runs of a runner: one task of the event loop per run, and one report per end."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from json import dumps, loads

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.logs.lines import describe, within_run
from orcheo_dispatch.worker.executor.error_text import error_text
from orcheo_dispatch.worker.executor.payload import storable
from orcheo_dispatch.worker.executor.protocol import Executor, Output, RunRejectedError, Stopped, Waiting
from orcheo_dispatch.worker.frames import Ended, Start
from orcheo_dispatch.worker.runner.faults import fault_of

_key: contextvars.ContextVar[int | None] = contextvars.ContextVar("run", default=None)


def current_run() -> int | None:
    """Return the key of the run that is calling: its own task, or a task or thread that asyncio created for it."""
    return _key.get()


def run_in(context: contextvars.Context | None) -> int | None:
    """Return the key of the run that this context belongs to."""
    return context.get(_key) if context is not None else None


def run_of(start: Start) -> Run:
    """Return the run that a frame describes."""
    inputs, runnable_config = loads(start.payload)
    return Run(**start.run, inputs=inputs, runnable_config=runnable_config)


class Runs:
    """Execute runs and report their ends. For the event loop's thread only."""

    def __init__(
        self,
        executor: Executor,
        report: Callable[[Ended], None],
        *,
        on_busy: Callable[[bool], None],
        max_output: int,
    ) -> None:
        """`on_busy` is called with True when the first run starts, and with False when the last one has ended."""
        self._executor = executor
        self._report = report
        self._on_busy = on_busy
        self._max_output = max_output
        self._tasks: dict[int, asyncio.Task[Output]] = {}
        self._stopped: set[int] = set()
        self.provided: dict[Claim, bytes] = {}
        """What the main process has read for each run in progress."""

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, frame: Start) -> None:
        """Execute the run of a frame."""
        run = run_of(frame)
        if frame.provided is not None:
            self.provided[run.claim] = frame.provided
        if not self._tasks:
            self._on_busy(True)
        task = asyncio.get_running_loop().create_task(self._execute(frame.key, run))
        self._tasks[frame.key] = task
        task.add_done_callback(lambda done: self._ended(frame.key, run, done))

    def stop(self, key: int, stopped: Stopped) -> None:
        """Cancel a run; do nothing if it has ended."""
        task = self._tasks.get(key)
        if task is not None and not task.done():
            self._stopped.add(key)
            task.cancel(stopped)

    async def _execute(self, key: int, run: Run) -> Output:
        _key.set(key)
        with within_run(run_id=run.run_id, workflow_id=run.workflow_id, fence=run.fence):
            return await self._executor.execute(run)

    def _ended(self, key: int, run: Run, task: asyncio.Task[Output]) -> None:
        del self._tasks[key]
        if not self._tasks:
            self._on_busy(False)
        self.provided.pop(run.claim, None)
        stopped = key in self._stopped
        self._stopped.discard(key)
        self._report(Ended(key, "stopped") if stopped else self._end_of(key, task))

    def _end_of(self, key: int, task: asyncio.Task[Output]) -> Ended:
        if task.cancelled():
            return Ended(key, "cancelled_inside")
        error = task.exception()
        if error is None:
            return self._success(key, task.result())
        # A workflow may raise anything, SystemExit included.
        told = describe(error)
        how = "rejected" if isinstance(error, RunRejectedError) else "failed"
        return Ended(key, how, error=error_text(error), kind=told["error"], at=told.get("at"), fault=fault_of(error))

    def _success(self, key: int, result: Output) -> Ended:
        waits = result if isinstance(result, Waiting) else None
        payload = result.output if isinstance(result, Waiting) else result
        try:
            output = dumps(storable(dict(payload or {})), allow_nan=False).encode()
        except Exception as error:  # noqa: BLE001 - an object may do anything while it is being written
            why = f"The run's output cannot be stored: {type(error).__name__}."
            return Ended(key, "failed", error=why, kind="unstorable_output")
        if len(output) > self._max_output:
            why = f"The run's output has {len(output)} bytes, ORCHEO_WORKER_MAX_OUTPUT allows {self._max_output}."
            return Ended(key, "failed", error=why, kind="output_too_large")
        if waits is not None:
            return Ended(key, "waiting", output=output, checkpoint_id=waits.checkpoint_id, interrupts=waits.interrupts)
        return Ended(key, "succeeded", output=output)
