"""A run that this process executes now: the coroutine on the loop, and the ways to stop it from outside."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """One run under execution: a task on the event loop, stopped from other threads, which ends exactly once.

    It ends when its coroutine does, or when it is given up because it went on for too long after a stop. Whatever
    a coroutine still returns after that is not used.
    """

    def __init__(
        self,
        run: Run,
        *,
        begun_at: float,
        timeout: float,
        explain: Callable[[Stop], Stopped],
        on_end: Callable[[Execution], None],
    ) -> None:
        self.run = run
        self.claim = run.claim
        self.timeout = timeout
        """Seconds that it may take."""
        self.begun_at = begun_at
        """`time.monotonic()` of the moment before its lease began."""
        self.stopped_at: float | None = None
        """The same of the moment it was told to stop."""
        self.result: Result | None = None
        """How it ended. From then on it is being settled: that its lease is gone is no news."""
        self.settled = threading.Event()
        """Set when its end is written, or is not ours to write."""
        self._explain = explain
        self._on_end = on_end
        self._loop: EventLoop | None = None
        self._stop: Stop | None = None
        self._lock = threading.Lock()
        self._task: asyncio.Task[Mapping[str, Any] | None] | None = None

    def start(self, executor: Executor, loop: EventLoop) -> None:
        """Have the loop execute the run; to be called on the loop itself."""
        self._loop = loop
        self._task = asyncio.get_running_loop().create_task(self._execute(executor))
        self._task.add_done_callback(self._ended)

    def stop(self, why: Stop) -> bool:
        """Cancel the run, from any thread; the first reason stands. Return whether this was the first."""
        with self._lock:
            if self._stop is not None or self.result is not None:
                return False
            self._stop = why
            self.stopped_at = time.monotonic()
        if self._loop is not None:
            self._loop.loop.call_soon_threadsafe(self._cancel)
        return True

    def refuse(self, error: Exception) -> None:
        """End without having executed: there is something wrong with the run itself."""
        self._end(Result(error=error))

    def give_up(self) -> None:
        """Let the coroutine go on by itself, from any thread: it was told to stop, and ignored it."""
        self._end(Result(stop=self._stop, ignored_stop=True))

    async def _execute(self, executor: Executor) -> Mapping[str, Any] | None:
        _current.set(self)
        with self._lock:
            if self._stop is not None:
                raise asyncio.CancelledError
        with within_run(run_id=self.run.run_id, workflow_id=self.run.workflow_id, fence=self.run.fence):
            return await executor.execute(self.run)

    def _cancel(self) -> None:
        if self._stop is not None and self._task is not None and not self._task.done():
            self._task.cancel(self._explain(self._stop))

    def _ended(self, task: asyncio.Task[Mapping[str, Any] | None]) -> None:
        with self._lock:
            stop = self._stop
        if task.cancelled():
            self._end(
                Result(stop=stop, error=None if stop else asyncio.CancelledError("the workflow cancelled itself"))
            )
        elif (error := task.exception()) is not None:
            # A workflow may raise anything, SystemExit included.
            self._end(Result(error=error, stop=stop))
        else:
            # What swallowed a stop and returned all the same has been stopped, not finished.
            self._end(Result(output=task.result(), stop=stop))

    def _end(self, result: Result) -> None:
        with self._lock:
            if self.result is not None:
                return
            self.result = result
        self._on_end(self)


class Executions:
    """The runs that this process executes now, for all who look after them. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """Runs that this process executes at a time."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room for a run again."""
        self._changed = threading.Condition()
        self._running: dict[Claim, Execution] = {}
        self._reserved = 0

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, execution: Execution) -> bool:
        with self._changed:
            return self._running.get(execution.claim) is execution

    def __iter__(self) -> Iterator[Execution]:
        with self._changed:
            return iter(list(self._running.values()))

    @property
    def full(self) -> bool:
        """Whether there is no room for one more run."""
        return len(self._running) + self._reserved >= self.capacity

    def reserve(self, wanted: int) -> int:
        """Keep room for as many of `wanted` runs as there is; return for how many."""
        with self._changed:
            room = max(0, min(wanted, self.capacity - len(self._running) - self._reserved))
            self._reserved += room
            return room

    def add(self, executions: Iterable[Execution], *, reserved: int) -> None:
        """Keep the leases of these runs alive from now on; they take the place of what was reserved for them."""
        with self._changed:
            self._reserved -= reserved
            for execution in executions:
                self._running[execution.claim] = execution

    def remove(self, executions: Iterable[Execution]) -> None:
        """Let go of runs that are settled."""
        with self._changed:
            for execution in executions:
                self._running.pop(execution.claim, None)
            self._changed.notify_all()
        self.on_room()

    def get(self, claim: Claim) -> Execution | None:
        """Return the execution under this claim, if it is here."""
        with self._changed:
            return self._running.get(claim)

    def wait_until_none(self) -> None:
        """Wait until every run is settled, for as long as that takes; signals are handled meanwhile."""
        with self._changed:
            while self._running or self._reserved:
                self._changed.wait(1.0)

    def stop_all(self, why: Stop, *, where: Callable[[Execution], bool] = lambda _: True) -> int:
        """Stop every run; return how many were not stopped before."""
        return sum(execution.stop(why) for execution in self if where(execution))


def _nothing() -> None:
    """Do nothing."""


def execution_in(context: contextvars.Context | None) -> Execution | None:
    """Return the execution whose code has this context: a run's own task, and every task that it makes."""
    return context.get(_current) if context is not None else None
