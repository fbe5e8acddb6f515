"""Settings whose values are words: what to do with lost runs, isolation, cron."""

from __future__ import annotations

from enum import StrEnum


class LostRuns(StrEnum):
    """What becomes of a run whose worker is lost."""

    FAIL = "fail"
    REQUEUE = "requeue"
    """It starts again from the beginning."""
    RESUME = "resume"
    """It continues after its last finished step."""
    HOLD = "hold"

    @property
    def requeues(self) -> bool:
        """Whether the run becomes pending again."""
        return self in (LostRuns.REQUEUE, LostRuns.RESUME)


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


ORCHEO_EXECUTOR = "orcheo"


class CronMode(StrEnum):
    """Who creates the runs of cron triggers that are due."""

    WORKER = "worker"
    API = "api"
    OFF = "off"


def cron_mode(chosen: CronMode | None, *, executor: str, api_url: str | None) -> CronMode:
    """Return who creates the runs of due cron triggers.

    By default, if workers have an executor other than Orcheo's, a configured API is asked, as in
    releases before there was a choice.
    """
    if chosen is not None:
        return chosen
    return CronMode.API if executor != ORCHEO_EXECUTOR and api_url is not None else CronMode.WORKER
