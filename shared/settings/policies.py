"""Settings with a fixed set of values: policy for lost runs, isolation, cron."""

from __future__ import annotations

from enum import StrEnum


class LostRuns(StrEnum):
    """What happens to a run whose worker is lost."""

    RESUME = "resume"
    """It continues after its last finished step."""
    REQUEUE = "requeue"
    """It starts again from the beginning."""
    FAIL = "fail"
    HOLD = "hold"
    """It stays as it is, until an operator decides."""

    @property
    def requeues(self) -> bool:
        """Whether the run becomes pending again."""
        return self in (LostRuns.REQUEUE, LostRuns.RESUME)


class Retries(StrEnum):
    """Where a failed run starts again that the retry policy of its workflow allows to be tried again."""

    STEP = "step"
    """In the step that failed, if it can be resumed."""
    START = "start"
    OFF = "off"
    """Retry policies are not executed."""


class InterruptedRuns(StrEnum):
    """What happens to a run that stops at an interrupt, to wait for a person."""

    SUCCEED = "succeed"
    """It ends as succeeded, as with Orcheo's own worker."""
    WAIT = "wait"
    """It waits for an answer, without a run slot."""
    WAIT_WITH_SLOT = "wait_with_slot"


class WorkerIsolation(StrEnum):
    """Which runs are executed in a process of their own."""

    ADAPTIVE = "adaptive"
    """Runs of versions that have blocked, crashed or exhausted the memory of a shared process, and suspects."""
    SHARED = "shared"
    """Only suspects: runs that were in a shared process when it ended, in their next attempt."""
    PROCESS = "process"
    """All runs."""


class WorkerPool(StrEnum):
    """How workers of earlier releases executed several runs at once; replaced by `WorkerIsolation`."""

    THREADS = "threads"
    PREFORK = "prefork"


class Traces(StrEnum):
    """Whether spans of runs are exported."""

    OFF = "off"
    OTLP = "otlp"
    """With OTLP over HTTP, as the variables of OpenTelemetry say."""


ORCHEO_EXECUTOR = "orcheo"


class CronMode(StrEnum):
    """Who creates the runs of due cron triggers."""

    WORKER = "worker"
    API = "api"
    OFF = "off"


def cron_mode(chosen: CronMode | None, *, executor: str, api_url: str | None) -> CronMode:
    """Return who creates the runs of due cron triggers.

    By default, if workers use an executor other than Orcheo's, the API does if it is configured, as in
    releases that had no such setting.
    """
    if chosen is not None:
        return chosen
    return CronMode.API if executor != ORCHEO_EXECUTOR and api_url is not None else CronMode.WORKER
