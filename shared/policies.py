"""Values of settings that name a policy."""

from __future__ import annotations

from enum import StrEnum


class LostRuns(StrEnum):
    """What becomes of a run whose worker is lost."""

    FAIL = "fail"
    REQUEUE = "requeue"
    HOLD = "hold"


class WorkerIsolation(StrEnum):
    """Which runs get a process of their own."""

    ADAPTIVE = "adaptive"
    """Those of workflow versions that have held, crashed or filled the process that they shared."""
    SHARED = "shared"
    """None."""
    PROCESS = "process"
    """All."""


class WorkerPool(StrEnum):
    """How workers of earlier releases ran many runs at once; `WorkerIsolation` has taken its place."""

    THREADS = "threads"
    PREFORK = "prefork"
