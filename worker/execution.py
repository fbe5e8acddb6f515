"""A run that this process executes now: the coroutine on the loop, and the ways to stop it from outside."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from shared.ledger import Claim
from shared.logs import within_run
from worker.executor import Executor, Run, Stopped
from worker.loop import EventLoop


class Stop(Enum):
    """Why a run was stopped before its end."""

    CANCELLED = auto()
    """The API cancelled it."""
    TIMED_OUT = auto()
    LOST = auto()
    """Its fence moved: it is somebody else's now."""
    LEASE_OVER = auto()
    """Postgres could not be reached for a lease: somebody else may take the run for lost by now."""
    DRAINED = auto()


_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("execution")


@dataclass(frozen=True, slots=True)
class Result:
    """How the coroutine ended: an output, an error, or a stop. `ignored_stop` where it went on after the grace time."""

    output: Mapping[str, Any] | None = None
    error: BaseException | None = None
    stop: Stop | None = None
    ignored_stop: bool = False


class Execution:
    """One run under execution. Waited for by its own thread, stopped by others."""

    def __init__(
        self, run: Run, executor: Executor, loop: EventLoop, explain: Callable[[Stop], Stopped], *, begun_at: float
    ) -> None:
        self.run = run
        self.claim = run.claim
        self.begun_at = begun_at
        """`time.monotonic()` of the moment before its lease began."""
        self.settling = False
        """Its end is being written: that the lease is gone then is no news."""
        self._executor = executor
        self._explain = explain
        self._loop = loop
        self._stop: Stop | None = None
        self._stop_lock = threading.Lock()
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._task: asyncio.Task[Mapping[str, Any] | None] | None = None

    def stop(self, why: Stop) -> bool:
        """Cancel the run, from any thread; the first reason stands. Return whether this was the first."""
        with self._stop_lock:
            if self._stop is not None:
                return False
            self._stop = why
        self._events.put("stop")
        self._loop.loop.call_soon_threadsafe(self._cancel)
        return True

    def wait(self, *, timeout: float, grace: float) -> Result:
        """Execute and return how it ended; never raises.

        After `timeout` seconds, or a stop, the coroutine is cancelled and has `grace` seconds for its clean-up.
        One that goes on for longer, or blocks the loop, is left to itself: whatever it still returns is not used.
        """
        future = self._loop.submit(self._execute())
        future.add_done_callback(lambda _: self._events.put("done"))
        if self._next_event(timeout) is None:
            self.stop(Stop.TIMED_OUT)
            self._next_event(0)
        if not future.done() and not self._await_done(future, grace):
            return Result(stop=self._stop, ignored_stop=True)
        return self._result(future)

    async def _execute(self) -> Mapping[str, Any] | None:
        self._task = asyncio.current_task()
        _current.set(self)
        with self._stop_lock:
            if self._stop is not None:
                raise asyncio.CancelledError
        with within_run(run_id=self.run.run_id, workflow_id=self.run.workflow_id, fence=self.run.fence):
            return await self._executor.execute(self.run)

    def _cancel(self) -> None:
        if self._stop is not None and self._task is not None and not self._task.done():
            self._task.cancel(self._explain(self._stop))

    def _next_event(self, timeout: float) -> str | None:
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _await_done(self, future: concurrent.futures.Future[Any], grace: float) -> bool:
        deadline = time.monotonic() + grace
        while not future.done():
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._next_event(remaining) is None:
                return future.done()
        return True

    def _result(self, future: concurrent.futures.Future[Mapping[str, Any] | None]) -> Result:
        with self._stop_lock:
            stop = self._stop
        try:
            output = future.result(timeout=0)
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            return Result(stop=stop, error=None if stop else asyncio.CancelledError("the workflow cancelled itself"))
        except BaseException as error:  # noqa: BLE001 - a workflow may raise anything, SystemExit included
            return Result(error=error, stop=stop)
        # What swallowed a stop and returned all the same has been stopped, not finished.
        return Result(output=output, stop=stop)


def execution_in(context: contextvars.Context | None) -> Execution | None:
    """Return the execution whose code has this context: a run's own task, and every task that it makes."""
    return context.get(_current) if context is not None else None


class Executions:
    """The runs that this process executes now, for the heartbeat and the drain. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Claim, Execution] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, execution: Execution) -> bool:
        with self._lock:
            return self._running.get(execution.claim) is execution

    def __iter__(self) -> Iterator[Execution]:
        with self._lock:
            return iter(list(self._running.values()))

    def add(self, execution: Execution) -> None:
        """Keep the lease of this run alive from now on."""
        with self._lock:
            self._running[execution.claim] = execution

    def remove(self, execution: Execution) -> None:
        """Let go of a run that is settled."""
        with self._lock:
            self._running.pop(execution.claim, None)

    def get(self, claim: Claim) -> Execution | None:
        """Return the execution under this claim, if it is here."""
        with self._lock:
            return self._running.get(claim)

    def stop_all(self, why: Stop, *, where: Callable[[Execution], bool] = lambda _: True) -> int:
        """Stop every run; return how many were not stopped before."""
        return sum(execution.stop(why) for execution in self if where(execution))
