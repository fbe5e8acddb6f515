"""Dispatch due cron triggers through Orcheo's API (`ORCHEO_DISPATCH_CRON=api`)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import redis

from orcheo_dispatch.dispatcher.api import Answer, ask_api
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.cron.loop import CronLoop, EventPrompts
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.cron.report import ApiCronOutcome, CronReport
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.settings.addresses import Origin
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import CronMode

PATH = "/api/triggers/cron/dispatch"
_FIRST_PAUSE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 600.0
_LONGEST_RETRY_AFTER_SECONDS = 3600.0
_JITTER = 0.2

_OF_STATUS: dict[int, tuple[ApiCronOutcome, str]] = {
    400: ("refused", "it requires one workspace: use a token (ORCHEO_SERVICE_TOKEN) that belongs to only one"),
    401: ("unauthorized", "it rejects the token (ORCHEO_SERVICE_TOKEN)"),
    403: ("forbidden", "the token (ORCHEO_SERVICE_TOKEN) belongs to no workspace, or lacks the permission"),
    404: ("refused", "there is no Orcheo at ORCHEO_API_URL"),
    405: ("refused", "there is no Orcheo at ORCHEO_API_URL"),
    422: ("refused", "a workflow's credentials are not healthy"),
    429: ("rate_limited", "too many requests (ORCHEO_MULTI_WORKSPACE_RATE_LIMIT), or a workspace has no run slot"),
}


class ApiCron:
    """Asks the API to create the runs of due cron triggers; after a failure, only after a delay."""

    def __init__(self, origin: Origin, token: str | None, *, pause: Callable[[], float] = random.random) -> None:
        """`pause` returns the jitter, a number below 1: processes that failed together must not retry together."""
        self._origin = origin
        self._token = token
        self._pause = pause
        self._failures = 0
        self._not_before = float("-inf")

    def __call__(self) -> CronReport | None:
        """Send one request; return its result, or None if it is too early to retry. Never raises."""
        if time.monotonic() < self._not_before:
            return None
        answer = ask_api(self._origin, PATH, self._token)
        report = self._report(answer)
        if report.outcome == "succeeded":
            self._failures, self._not_before = 0, float("-inf")
        else:
            self._failures += 1
            self._not_before = time.monotonic() + self._pause_after(answer)
        return report

    def _report(self, answer: Answer) -> CronReport:
        if answer.failure is not None:
            return CronReport(answer.failure, reason=answer.reason)
        if 200 <= answer.status < 300:
            if not isinstance(answer.body, list):
                return CronReport("malformed", reason=f"{answer.status}, but no list of runs: is this Orcheo's API?")
            return CronReport("succeeded", runs=len(answer.body))
        if 300 <= answer.status < 400:
            where = f" to {answer.location}" if answer.location else ""
            return CronReport(
                "redirected",
                reason=f"{answer.status}{where}, and redirects are not followed: set ORCHEO_API_URL to the API itself",
            )
        outcome, why = _OF_STATUS.get(answer.status, ("refused", "it rejects the request"))
        if answer.status == 401 and self._token is None:
            why = "it requires a token (ORCHEO_SERVICE_TOKEN)"
        if answer.status >= 500:
            outcome, why = "server_error", "it failed: see its log"
        return CronReport(outcome, reason=f"{answer.status}: {why}")

    def _pause_after(self, answer: Answer) -> float:
        """Return the delay before the next request (seconds): exponential backoff, or `Retry-After` if longer."""
        seconds = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 20), _LONGEST_PAUSE_SECONDS)
        if answer.retry_after is not None:
            seconds = max(seconds, min(answer.retry_after, _LONGEST_RETRY_AFTER_SECONDS))
        return seconds * (1 + _JITTER * self._pause())


class DispatcherCron:
    """Cron in a dispatcher: through the API if the settings say so, otherwise forwarded to workers."""

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        metrics: DispatcherMetrics,
        *,
        pass_on: Callable[[], None],
    ) -> None:
        self._mode = settings.cron_mode
        self._pass_on = pass_on
        self._prompts = EventPrompts()
        self._loop: CronLoop | None = None
        if self._mode is CronMode.API:
            assert settings.api_url is not None
            token = settings.service_token.get_secret_value().strip() if settings.service_token else None
            client: redis.Redis = connect(settings.redis_url.get_secret_value())
            self._loop = CronLoop(
                ApiCron(Origin.of(settings.api_url), token),
                self._prompts,
                CronRecord(client, installation.cron_record),
                interval=settings.cron_interval,
                metrics=metrics.cron,
                close=client.close,
            )

    def start(self) -> None:
        """Start dispatching; this does not depend on Beat."""
        if self._loop is not None:
            self._loop.start()

    def asked(self) -> None:
        """Dispatch as soon as possible, or have a worker do it, because Beat or Orcheo's own Beat asked for it."""
        if self._loop is not None:
            self._prompts.give()
        elif self._mode is CronMode.WORKER:
            self._pass_on()

    def stop(self) -> None:
        """Begin no other dispatch, and wait briefly for the current one."""
        if self._loop is not None:
            self._loop.stop()
