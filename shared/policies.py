"""Values of settings that name a policy."""

from __future__ import annotations

from enum import StrEnum


class LostRuns(StrEnum):
    """What becomes of a run whose worker is lost."""

    FAIL = "fail"
    REQUEUE = "requeue"
    HOLD = "hold"


class WorkerPool(StrEnum):
    """How a worker runs many runs at once."""

    THREADS = "threads"
    PREFORK = "prefork"
