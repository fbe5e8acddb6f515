"""Represent a run under execution in the main process: begun, waiting for a runner, in a runner, ended."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.traces.runs import RunTrace
from orcheo_dispatch.worker.frames import Fault

_numbers = itertools.count(1)


class Stop(Enum):
    """Why a run was stopped before its end."""

    CANCELLED = auto()
    """The API cancelled it."""
    TIMED_OUT = auto()
    LOST = auto()
    """Its fence has changed: this worker no longer holds it."""
    LEASE_OVER = auto()
    """Its lease was not renewed in time: a dispatcher may have reaped the run by now."""
    DRAINED = auto()


class How(StrEnum):
    """How a run ended in its runner."""

    SUCCEEDED = "succeeded"
    WAITING = "waiting"
    """It stopped at an interrupt."""
    FAILED = "failed"
    REJECTED = "rejected"
    """Its executor reports that it must not be executed."""
    STOPPED = "stopped"
    CRASHED = "crashed"
    """Its code ended the runner."""
    SUSPECTED = "suspected"
    """The runner ended, or its event loop was blocked, while several runs were in it: one of them may be the cause."""
    LOST = "lost"
    """The runner ended for a reason unrelated to the run."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. Nothing in it is an object of a workflow."""

    how: How
    output: str | None = None
    """JSON text."""
    error: str | None = None
    """The error text that is stored in the run."""
    kind: str | None = None
    """The class of its error, for logs."""
    at: str | None = None
    """Where the error was raised."""
    fault: Fault | None = None
    """The platform fault that made it fail, if there was one."""
    checkpoint_id: str | None = None
    """The checkpoint at which it stopped at an interrupt."""
    interrupts: int = 0
    """How many interrupts wait there."""
    stop: Stop | None = None
    ignored_stop: bool = False
    """Whether it continued after the grace time. Its runner was killed, or will be replaced."""


class Execution:
    """One run under execution, which ends exactly once. `stop` and `give_up` may be called from any thread."""

    def __init__(
        self,
        run: Run,
        *,
        begun_at: float,
        timeout: float,
        on_stop: Callable[[Execution], None],
        on_ignored: Callable[[Execution], None],
        on_end: Callable[[Execution], None],
        trace: RunTrace | None = None,
    ) -> None:
        """`on_stop` is called when it must stop, `on_ignored` if it has not ended within the grace time.

        `trace` makes its spans, if they are exported.
        """
        self.run = run
        self.claim = run.claim
        self.trace = trace
        self.key = next(_numbers)
        """Its number, unique in this process."""
        self.timeout = timeout
        """Maximum duration (seconds)."""
        self.begun_at = begun_at
        """`time.monotonic()` just before its lease began."""
        self.stopped_at: float | None = None
        """`time.monotonic()` when its stop was requested."""
        self.stop_reason: Stop | None = None
        self.started = False
        """Whether it was sent to a runner."""
        self.result: Result | None = None
        """How it ended. Once set, the run is being settled, and a lost lease is no longer reported."""
        self.ended_at = begun_at
        """`time.monotonic()` when `result` was set."""
        self.settled = threading.Event()
        """Set when its end is written, or when this worker must not write it."""
        self._given_up = False
        self._on_stop = on_stop
        self._on_ignored = on_ignored
        self._on_end = on_end
        self._lock = threading.Lock()

    def stop(self, why: Stop) -> bool:
        """Request the stop of the run. Return False if it was requested before, or if the run has ended."""
        with self._lock:
            if self.stop_reason is not None or self.result is not None:
                return False
            self.stop_reason = why
            self.stopped_at = time.monotonic()
        self._on_stop(self)
        return True

    def refuse(self, why: str) -> None:
        """End the run without executing it, because the run itself is faulty."""
        self.end(Result(How.FAILED, error=why, kind="UnreadableRun"))

    def give_up(self) -> bool:
        """Have its runner ended, because it ignored its stop. Return whether this was the first request."""
        with self._lock:
            if self._given_up or self.result is not None:
                return False
            self._given_up = True
        self._on_ignored(self)
        return True

    def end(self, result: Result) -> None:
        """Record how it ended, once, and have it settled."""
        with self._lock:
            if self.result is not None:
                return
            self.result = result
            self.ended_at = time.monotonic()
        self._on_end(self)


class Executions:
    """The runs that this process executes now, for heartbeat, deadlines and settler. Thread-safe."""

    def __init__(self, capacity: int, on_room: Callable[[], None] | None = None) -> None:
        """`on_room` is called when there is room for a run again."""
        self.capacity = capacity
        """Maximum number of runs that this process executes at a time."""
        self._on_room = on_room
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
        """Reserve room for up to `wanted` runs; return for how many."""
        with self._changed:
            room = max(0, min(wanted, self.capacity - len(self._running) - self._reserved))
            self._reserved += room
            return room

    def add(self, executions: Iterable[Execution], *, reserved: int) -> None:
        """Add runs, whose leases are extended from now on, and end the reservation of `reserved` places."""
        with self._changed:
            self._reserved -= reserved
            for execution in executions:
                self._running[execution.claim] = execution
            self._changed.notify_all()

    def remove(self, executions: Iterable[Execution]) -> None:
        """Remove settled runs; their leases are no longer extended."""
        with self._changed:
            for execution in executions:
                self._running.pop(execution.claim, None)
            self._changed.notify_all()
        if self._on_room is not None:
            self._on_room()

    def get(self, claim: Claim) -> Execution | None:
        """Return the execution with this claim, if there is one."""
        with self._changed:
            return self._running.get(claim)

    def wait_until_none(self) -> None:
        """Wait until every run is settled, without a limit; signals are still handled."""
        with self._changed:
            while self._running or self._reserved:
                self._changed.wait(1.0)

    def wait_until_any(self, stopping: threading.Event) -> None:
        """Wait until there are runs, or `stopping` is set; who sets it calls `notify`."""
        with self._changed:
            self._changed.wait_for(lambda: self._running or stopping.is_set())

    def notify(self) -> None:
        """Have `wait_until_any` look again."""
        with self._changed:
            self._changed.notify_all()

    def stop_all(self, why: Stop, *, where: Callable[[Execution], bool] = lambda _: True) -> int:
        """Stop every run that `where` selects; return how many were not stopped before."""
        return sum(execution.stop(why) for execution in self if where(execution))
