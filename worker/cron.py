"""Cron in a worker: the executor that has Orcheo dispatches due triggers, whatever the runs of this worker do.

On a thread and an event loop of its own: neither full run slots nor a run that blocks the loop of the runs delay it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.broker import CRON_IN_WORKER, broker_errors, connect, task_name
from shared.cron import CronLoop, CronRecord, CronReport
from shared.errors import BrokerError, DatabaseError
from shared.installation import Installation
from shared.logs import describe, log
from shared.metrics import WorkerMetrics
from shared.settings import CronMode, Settings
from worker.executor import Executor

_BLOCK_SECONDS = 4.0
"""Shorter than the client's socket timeout, which takes a longer silence for a dead connection."""
_LEAST_BLOCK_SECONDS = 0.1
_RETRY_SECONDS = 1.0

DispatchCron = Callable[[], Coroutine[Any, Any, CronReport]]


class QueuePrompts:
    """Messages of Beat's in the queue of cron messages. Each reaches one worker, and is gone with it."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        # Tried again here: the client's own tries would wait on beyond a stop.
        client.set_retry(Retry(NoBackoff(), 0))
        self._client = client
        self._queue = queue
        self._stopping = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait for a message, for so many seconds at most and never for longer than a few."""
        try:
            with broker_errors():
                found: Any = self._client.brpop(
                    [self._queue], timeout=min(max(seconds, _LEAST_BLOCK_SECONDS), _BLOCK_SECONDS)
                )
        except BrokerError:
            self._stopping.wait(min(seconds, _RETRY_SECONDS))
            return False
        except Exception:
            if self._stopping.is_set():
                # Whatever a connection raises that is closed under its reader.
                return False
            raise
        return found is not None and task_name(found[1]) == CRON_IN_WORKER

    def stop(self) -> None:
        """Let the wait end, from any thread."""
        self._stopping.set()
        self._client.connection_pool.disconnect()


class ExecutorCron:
    """Calls the executor's `dispatch_cron`, always on the loop and the thread of the first call."""

    def __init__(self, dispatch: DispatchCron, wake: Callable[[], None]) -> None:
        self._dispatch = dispatch
        self._wake = wake
        self._runner = asyncio.Runner()

    def __call__(self) -> CronReport:
        """Dispatch, and wake the dispatchers for what was created."""
        try:
            report = self._runner.run(self._dispatch())
        except DatabaseError as error:
            return CronReport("database_away", reason=str(error))
        except Exception as error:  # noqa: BLE001 - Orcheo's, or a fault of ours: cron goes on at the next interval
            found = describe(error)
            return CronReport("failed", reason=f"{found.get('error', type(error).__name__)} at {found.get('at', '?')}")
        if report.runs:
            self._wake()
        return report

    def close(self) -> None:
        """Close the loop, on its own thread."""
        self._runner.close()


def make_cron(
    settings: Settings,
    installation: Installation,
    executor: Executor,
    metrics: WorkerMetrics,
    *,
    wake: Callable[[], None],
) -> CronLoop | None:
    """Return the loop that dispatches cron triggers; None where that is not a worker's to do, or it cannot."""
    if settings.cron_mode is not CronMode.WORKER:
        return None
    dispatch: DispatchCron | None = getattr(executor, "dispatch_cron", None)
    if dispatch is None:
        log.warning(
            "cron_unavailable",
            executor=settings.executor,
            remedy="ORCHEO_DISPATCH_CRON=api and ORCHEO_API_URL, or ORCHEO_DISPATCH_CRON=off",
        )
        return None
    client = connect(settings.redis_url.get_secret_value())
    cron = ExecutorCron(dispatch, wake)

    def close() -> None:
        cron.close()
        client.close()

    return CronLoop(
        cron,
        QueuePrompts(client, installation.cron),
        CronRecord(client, installation.cron_record),
        interval=settings.cron_interval,
        metrics=metrics.cron,
        close=close,
    )
