"""Dispatch due cron triggers in a worker, independently of its runs.

This is done in a runner of its own, so that neither full run slots nor a run that blocks its event loop delays it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcheo_dispatch.shared.broker.app import CRON_IN_WORKER, broker_errors, connect, task_name
from orcheo_dispatch.shared.broker.backoff import Backoff
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.cron.loop import CronLoop
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import CronMode

_BLOCK_SECONDS = 4.0
"""Shorter than the client's socket timeout, after which a silent connection counts as dead (seconds)."""
_LEAST_BLOCK_SECONDS = 0.1


class QueuePrompts:
    """Beat's messages in the queue of cron messages. Each message reaches one worker and is then deleted."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        # Retried here: the client's own retries would continue to wait after a stop.
        client.set_retry(Retry(NoBackoff(), 0))
        self._client = client
        self._queue = queue
        self._backoff = Backoff()
        self._stopping = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait for a message for this many seconds, but at most `_BLOCK_SECONDS`; return whether one arrived."""
        try:
            with broker_errors():
                found: Any = self._client.brpop(
                    [self._queue], timeout=min(max(seconds, _LEAST_BLOCK_SECONDS), _BLOCK_SECONDS)
                )
        except BrokerError:
            self._stopping.wait(min(seconds, self._backoff.next()))
            return False
        except Exception:
            if self._stopping.is_set():
                # A connection that is closed while it is being read may raise anything.
                return False
            raise
        self._backoff.reset()
        return found is not None and task_name(found[1]) == CRON_IN_WORKER

    def stop(self) -> None:
        """End the wait, from any thread."""
        self._stopping.set()
        self._client.connection_pool.disconnect()


class ExecutorCron:
    """Have the executor dispatch cron triggers, in a runner."""

    def __init__(self, dispatch: Callable[[], CronReport], wake: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._wake = wake

    def __call__(self) -> CronReport:
        """Dispatch, and wake the dispatchers if runs were created."""
        report = self._dispatch()
        if report.runs:
            self._wake()
        return report


def make_cron(
    settings: Settings,
    installation: Installation,
    metrics: WorkerMetrics,
    *,
    dispatch: Callable[[], CronReport] | None,
    wake: Callable[[], None],
) -> CronLoop | None:
    """Return the loop that dispatches cron triggers; None if a worker must not dispatch them, or cannot."""
    if settings.cron_mode is not CronMode.WORKER:
        return None
    if dispatch is None:
        log.warning(
            "cron_unavailable",
            executor=settings.executor,
            remedy="ORCHEO_DISPATCH_CRON=api and ORCHEO_API_URL, or ORCHEO_DISPATCH_CRON=off",
        )
        return None
    client = connect(settings.redis_url.get_secret_value())
    return CronLoop(
        ExecutorCron(dispatch, wake),
        QueuePrompts(client, installation.cron),
        CronRecord(client, installation.cron_record),
        interval=settings.cron_interval,
        metrics=metrics.cron,
        close=client.close,
    )
