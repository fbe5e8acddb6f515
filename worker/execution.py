"""A run in execution as the main process knows it: begun, waiting for a runner or in one, ended."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.worker.frames import Fault

_numbers = itertools.count(1)


class Stop(Enum):
    """Why a run was stopped before its end."""

    CANCELLED = auto()
    """The API cancelled it."""
    TIMED_OUT = auto()
    LOST = auto()
    """Its fence has changed: another process has claimed it."""
    LEASE_OVER = auto()
    """Postgres was unreachable for a whole lease: a dispatcher may have reaped the run."""
    DRAINED = auto()


class How(StrEnum):
    """How a run ended in its runner."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    """Its executor rejected it."""
    STOPPED = "stopped"
    CRASHED = "crashed"
    """Its code ended the runner."""
    SUSPECTED = "suspected"
    """The runner ended while several runs were in it: one of them may have ended it."""
    LOST = "lost"
    """The runner ended for a reason that is not the run's."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. Nothing in it is an object of a workflow."""

    how: How
    output: str | None = None
    """JSON text."""
    error: str | None = None
    """What the run will say of its failure."""
    kind: str | None = None
    """The class of its error, for logs."""
    at: str | None = None
    """Where that was raised."""
    fault: Fault | None = None
    """The fault of the platform that it failed of, if it is one."""
    stop: Stop | None = None
    ignored_stop: bool = False
    """Whether it went on after the grace time. Its runner was killed, or will be replaced."""


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
    ) -> None:
        """`on_stop` is called when it is to stop, `on_ignored` when it has not ended within the grace time."""
        self.run = run
        self.claim = run.claim
        self.key = next(_numbers)
        """Its number in this process."""
        self.timeout = timeout
        """Seconds that it may take."""
        self.begun_at = begun_at
        """`time.monotonic()` of the moment before its lease began."""
        self.stopped_at: float | None = None
        """The same of the moment when it was to stop."""
        self.stop_reason: Stop | None = None
        self.started = False
        """Whether a runner was given it."""
        self.result: Result | None = None
        """How it ended. From then on it is being settled: that its lease is gone is no news."""
        self.settled = threading.Event()
        """Set when its end is written, or is not ours to write."""
        self._given_up = False
        self._on_stop = on_stop
        self._on_ignored = on_ignored
        self._on_end = on_end
        self._lock = threading.Lock()

    def stop(self, why: Stop) -> bool:
        """Stop the run; the first reason stands. Return whether this was the first."""
        with self._lock:
            if self.stop_reason is not None or self.result is not None:
                return False
            self.stop_reason = why
            self.stopped_at = time.monotonic()
        self._on_stop(self)
        return True

    def refuse(self, why: str) -> None:
        """End without having been executed: there is something wrong with the run itself."""
        self.end(Result(How.FAILED, error=why, kind="UnreadableRun"))

    def give_up(self) -> bool:
        """Have its runner ended, because it ignored its stop. Return whether this was the first time."""
        with self._lock:
            if self._given_up or self.result is not None:
                return False
            self._given_up = True
        self._on_ignored(self)
        return True

    def end(self, result: Result) -> None:
        """Record how it ended, once, and pass it on to be settled."""
        with self._lock:
            if self.result is not None:
                return
            self.result = result
        self._on_end(self)


class Executions:
    """The runs that this process executes now, for heartbeat, deadlines and settler. Thread-safe."""

    def __init__(self, capacity: int, on_room: Callable[[], None] | None = None) -> None:
        """`on_room` is called when there is room for a run again."""
        self.capacity = capacity
        """Runs that this process executes at a time."""
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
        """Remove settled runs."""
        with self._changed:
            for execution in executions:
                self._running.pop(execution.claim, None)
            self._changed.notify_all()
        if self._on_room is not None:
            self._on_room()

    def get(self, claim: Claim) -> Execution | None:
        """Return the execution under this claim, if it is here."""
        with self._changed:
            return self._running.get(claim)

    def wait_until_none(self) -> None:
        """Wait until every run is settled, without a limit; signals are still handled."""
        with self._changed:
            while self._running or self._reserved:
                self._changed.wait(1.0)

    def stop_all(self, why: Stop, *, where: Callable[[Execution], bool] = lambda _: True) -> int:
        """Stop every run; return how many were not stopped before."""
        return sum(execution.stop(why) for execution in self if where(execution))
