"""The words of a trial: kinds of faults, what runs do, and the plan that both make up.

Times in a plan are seconds after the start of the trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BEATS, DISPATCHERS, WORKERS = 2, 2, 3


class Kind(StrEnum):
    """What a fault does."""

    KILL_WORKER = "kill -9 worker"
    KILL_DISPATCHER = "kill -9 dispatcher"
    KILL_BEAT = "kill -9 beat"
    PAUSE_WORKER = "SIGSTOP worker"
    PAUSE_DISPATCHER = "SIGSTOP dispatcher"
    PAUSE_BEAT = "SIGSTOP beat"
    DRAIN_WORKER = "SIGTERM worker"
    FLUSH = "FLUSHALL"
    REDIS_RESTART = "Redis killed, back empty"
    REDIS_FULL = "Redis, disk full"
    REDIS_DROP = "Redis, connections dropped"
    REDIS_DELAY = "Redis, slow"
    REDIS_STALL = "Redis, silent"
    REDIS_HALF_CLOSE = "Redis, half-closed"
    POSTGRES_RESTART = "Postgres killed, restarted"
    POSTGRES_DROP = "Postgres, connections dropped"
    POSTGRES_DELAY = "Postgres, slow"
    POSTGRES_STALL = "Postgres, silent"
    POSTGRES_HALF_CLOSE = "Postgres, half-closed"
    CUT_OFF_WORKER = "worker cut off from Postgres"
    SLOTS_DROP = "Redis of slots, dropped"
    SLOTS_STALL = "Redis of slots, silent"


class Act(StrEnum):
    """What a run does."""

    ECHO = "echo"
    WAIT = "wait"
    FAIL = "fail"
    BLOCK = "block"
    SWALLOW = "swallow"
    EXIT = "exit"
    ODD = "odd"


BOUNDED = (Kind.KILL_WORKER, Kind.FLUSH, Kind.POSTGRES_RESTART)
"""Recovery from these must take a lease and five seconds at most; nothing else strikes until then."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a trial is timed, in seconds."""

    lease: float
    """Of claims and of workers alike."""
    heartbeat: float
    quiet: float
    """Without another fault, after one whose recovery is bounded."""
    spacing: float
    """Between two other faults, on average."""


FULL = Pace(lease=4.0, heartbeat=0.5, quiet=8.0, spacing=1.2)
SHORT = Pace(lease=2.0, heartbeat=0.3, quiet=0.5, spacing=0.4)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: it begins at `at` and lasts `seconds`; `target` is the index of the process that it strikes."""

    at: float
    kind: Kind
    target: int
    seconds: float

    @property
    def ends_at(self) -> float:
        """When it is over."""
        return self.at + self.seconds


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One run: created at `at`, and cancelled through the API `cancel_after` seconds later, if at all."""

    run_id: str
    at: float
    act: Act
    seconds: float
    cancel_after: float | None
    triggered_by: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole trial."""

    seed: int
    pace: Pace
    faults: tuple[Fault, ...]
    runs: tuple[RunPlan, ...]

    @property
    def seconds(self) -> float:
        """When the last fault is over."""
        return max(fault.ends_at for fault in self.faults)
