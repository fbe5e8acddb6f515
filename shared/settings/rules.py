"""Rules between settings; each raises `SettingsError`."""

from __future__ import annotations

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.addresses import Origin
from orcheo_dispatch.shared.settings.policies import InterruptedRuns, LostRuns

_RESERVED_QUEUES = frozenset({"celery", "orcheo.cron", "orcheo.dispatch", "orcheo.hints", "orcheo.unacked"})


def check_leases(*, worker_lease: float, heartbeat: float) -> None:
    """Reject a lease so short that one late heartbeat would let it expire."""
    if worker_lease < 2 * heartbeat:
        raise SettingsError(
            f"ORCHEO_WORKER_LEASE={worker_lease:g} is invalid: expected at least twice ORCHEO_WORKER_HEARTBEAT "
            f"({heartbeat:g}): one late heartbeat must not lose a run"
        )


def check_interrupted_runs(interrupted_runs: InterruptedRuns, lost_runs: LostRuns) -> None:
    """Reject runs that wait for an answer and could not continue with it."""
    if interrupted_runs is not InterruptedRuns.SUCCEED and lost_runs is not LostRuns.RESUME:
        raise SettingsError(
            f"ORCHEO_DISPATCH_INTERRUPTED_RUNS={interrupted_runs.value} is invalid: expected 'succeed' unless "
            f"ORCHEO_DISPATCH_LOST_RUNS is resume ({lost_runs.value})"
        )


def check_queue(queue: str) -> None:
    """Reject a queue name that is used for something else."""
    if queue in _RESERVED_QUEUES or queue.startswith("_kombu"):
        raise SettingsError.wrong(
            "ORCHEO_DISPATCH_QUEUE", queue, "a name other than " + ", ".join(sorted(_RESERVED_QUEUES))
        )


def check_page_actions(*, token: bool, user_header: str | None) -> None:
    """Reject a page on which everybody who reaches it could act."""
    if not token and user_header is None:
        raise SettingsError(
            "ORCHEO_PAGE_ACTIONS=true is invalid: expected false unless ORCHEO_HEALTH_TOKEN or ORCHEO_PAGE_USER_HEADER "
            "is set, since everybody who reaches the status page could act"
        )


def check_api(api_url: str | None) -> None:
    """Reject an API that cannot dispatch cron triggers; its URL may contain a password and is not quoted."""
    if api_url is None:
        raise SettingsError("ORCHEO_API_URL is not set: expected Orcheo's API where ORCHEO_DISPATCH_CRON=api")
    try:
        Origin.of(api_url)
    except ValueError as error:
        raise SettingsError(f"ORCHEO_API_URL has an invalid value: expected {error}") from None
