"""Start, drain and stop the runtime of a worker on Celery's signals."""

from __future__ import annotations

import os
import threading
import time
from typing import Any
from uuid import uuid4

from celery.concurrency import get_implementation
from celery.signals import (
    task_received,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import state

from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.consumer.consumer import Consumer
from orcheo_dispatch.shared.consumer.progress import watch_consumer
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.health.checks import condition, progress
from orcheo_dispatch.shared.health.server import HealthServer, health_routes, serve_health
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.entry import fail
from orcheo_dispatch.shared.process.notify import ServiceManager
from orcheo_dispatch.shared.process.progress import ProgressWatch
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import WorkerIsolation, WorkerPool
from orcheo_dispatch.worker.messages.wire import Wire
from orcheo_dispatch.worker.runtime import Runtime

_END_SECONDS = 5.0
_CLOSE_SECONDS = 30.0
"""Time for closing the executor, deregistering and exiting after the last run (seconds); exceeds their timeouts."""
_WELL_SECONDS = 10.0
"""The runtime's own watch checks once per second, and waits for nothing."""
_MIN_LIMIT_SECONDS = 5.0
_SETTLE_SECONDS = 60.0
"""A settle may wait for a connection and for a statement; an idle thread checks once per second."""
_AT_ONCE = "SIGQUIT"
_POOL = "threads"
"""Celery's pool: its threads take messages and execute no runs."""


class Lifecycle:
    """Connect a runtime to the Celery worker around it; the `Intake` of its consumer.

    A second stop signal, or SIGQUIT, ends the drain: runs in progress are stopped at once.
    """

    def __init__(self, settings: Settings, installation: Installation, wire: Wire) -> None:
        self._settings = _replace_pool(settings)
        self._installation = installation
        self._wire = wire
        self._runtime: Runtime | None = None
        self.metrics = WorkerMetrics(settings, uuid4())
        self._health: HealthServer | None = None
        self._left = False
        self._consumer: Consumer | None = None
        # Celery's own count decreases only after the task has returned, and then notifies no waiter.
        self._in_hand = 0
        self._in_hand_lock = threading.Lock()
        self._progress: ProgressWatch | None = None
        self._manager = ServiceManager()

    @property
    def runtime(self) -> Runtime:
        """Return the runtime of this process."""
        assert self._runtime is not None
        return self._runtime

    def connect(self) -> None:
        """Connect to Celery's signals."""
        worker_init.connect(self._refuse_another_pool, weak=False)
        worker_init.connect(self._start, weak=False)
        worker_ready.connect(self._watch, weak=False)
        task_received.connect(self._note_received, weak=False)
        worker_shutting_down.connect(self._say_stopping, weak=False)
        worker_shutting_down.connect(self._drain, weak=False)
        worker_shutdown.connect(self._stop, weak=False)

    def _refuse_another_pool(self, sender: Any, **_: Any) -> None:
        pool = get_implementation(sender.pool_cls)
        if pool is not get_implementation(_POOL):
            given = pool.__module__.rpartition(".")[2]
            fail(
                SettingsError(
                    f"celery -P={given!r} is invalid: expected {_POOL!r} or no -P: ORCHEO_WORKER_ISOLATION gives runs "
                    "processes of their own"
                )
            )

    def _start(self, **_: Any) -> None:
        try:
            runtime = Runtime(
                self._settings,
                self._installation,
                self.metrics,
                self._wire,
                on_room=self._room_made,
                on_stalled=self._give_up,
            )
            runtime.start()
            self._runtime = runtime
        except DispatchError as error:
            fail(error)

    def _watch(self, sender: Consumer, **_: Any) -> None:
        """Start watching whether the consumer of this process takes waiting messages."""
        self._consumer = sender
        self._broker = connect(self._settings.redis_url.get_secret_value())
        watched = watch_consumer(
            sender, self._broker, [self._installation.queue(name) for name in self._settings.queues], self.metrics
        )
        self._progress = ProgressWatch(watched, on_well=self._feed)
        self._serve_health(sender)
        self._manager.ready(self._status())
        self._progress.start()

    def paused(self) -> bool:
        """Return whether there is no room, or no runner can be started: another worker should begin the runs."""
        runtime = self._runtime
        return runtime is None or runtime.runners.starter.problem is not None or runtime.executions.full

    def gives_back(self) -> bool:
        """Return whether a message that still arrives goes back to Redis."""
        runtime = self._runtime
        return runtime is not None and runtime.executions.full and runtime.runners.starter.problem is None

    def busy(self) -> bool:
        """Return whether runs are in progress."""
        return self._runtime is not None and len(self._runtime.executions) > 0

    def in_hand(self) -> int:
        """Return how many messages are being taken, at most Celery's own count: those that it drops do not count."""
        return min(self._in_hand, len(state.reserved_requests))

    def _room_made(self) -> None:
        if self._consumer is not None:
            self._consumer.room_made()

    def _give_up(self) -> None:
        if self._consumer is not None:
            self._consumer.give_up()

    def _feed(self) -> None:
        """Notify the service manager's watchdog if the runtime makes progress as well."""
        if time.monotonic() - self.runtime.well_at < _WELL_SECONDS:
            self._manager.status(self._status())
            self._manager.feed()

    def _status(self) -> str:
        running = len(self.runtime.executions)
        return f"draining, runs left: {running}" if self._left else f"runs: {running} of {self._settings.capacity}"

    def _say_stopping(self, **_: Any) -> None:
        self._manager.stopping("draining", self._settings.drain_timeout + self._settings.cancel_grace + _CLOSE_SECONDS)

    def _serve_health(self, consumer: Consumer) -> None:
        """Start the health server."""
        runtime = self.runtime
        limit = max(_MIN_LIMIT_SECONDS, 3 * self._settings.heartbeat)
        live = [
            progress("heartbeat", "heartbeat begun", lambda: runtime.heartbeat.turned_at, limit),
            progress("settle", "settle begun", lambda: runtime.settler.turned_at, _SETTLE_SECONDS),
            progress("runners", "check of the runners", lambda: runtime.runners.turned_at, self._settings.worker_lease),
        ]
        stored = progress(
            "database",
            "heartbeat stored",
            lambda: runtime.heartbeat.beaten_at,
            self._settings.worker_lease,
            patient=False,
        )
        ready = [
            condition("runs", lambda: runtime.failing.why, "not all fail with the same error"),
            condition("processes", lambda: runtime.runners.starter.problem, "can be started"),
            stored,
            condition("consumer", lambda: consumer.problem, "connected"),
            condition("drain", lambda: "draining" if self._left else None, "takes runs"),
        ]
        try:
            self._health = serve_health(
                self._settings, health_routes(live=live, ready=[*live, *ready], metrics=self.metrics.read)
            )
        except DispatchError as error:
            fail(error)

    def _note_received(self, **_: Any) -> None:
        with self._in_hand_lock:
            self._in_hand += 1

    def seen_to(self) -> None:
        """Record that a message has been taken: its runs execute, and the next message may come."""
        with self._in_hand_lock:
            self._in_hand -= 1
        self._room_made()

    def _drain(self, sig: str = "", **_: Any) -> None:
        self._left = True
        if self._runtime is not None:
            self._runtime.drain(at_once=sig == _AT_ONCE)

    def cuts_short(self) -> bool:
        """Return whether runs are in progress that a stop now would not hand over to another worker."""
        under_way = len(self._runtime.executions) if self._runtime is not None else 0
        return under_way > 0 and not self._settings.lost_runs.requeues

    def _stop(self, **_: Any) -> None:
        if self._runtime is not None:
            # The progress watch and the health server keep running until the last run has ended.
            self._runtime.executions.wait_until_none()
        if self._progress is not None:
            self._progress.stop()
        if self._health is not None:
            self._health.stop()
        if self._runtime is not None:
            self._runtime.stop()
            self._runtime = None
            threading.Thread(target=_end_for_certain, name="end", daemon=True).start()


def _end_for_certain() -> None:
    """Exit even if a thread is still running that Python would wait for."""
    time.sleep(_END_SECONDS)
    log.warning("threads_abandoned", threads=sum(not thread.daemon for thread in threading.enumerate()) - 1)
    os._exit(state.should_stop or 0)


def _replace_pool(settings: Settings) -> Settings:
    """Return the settings with the replacement for ORCHEO_WORKER_POOL, a setting of earlier releases."""
    if settings.pool is None:
        return settings
    isolated = settings.pool is WorkerPool.PREFORK and "isolation" not in settings.model_fields_set
    replaced = settings.model_copy(update={"isolation": WorkerIsolation.PROCESS}) if isolated else settings
    log.warning(
        "setting_replaced",
        variable="ORCHEO_WORKER_POOL",
        given=settings.pool.value,
        use=f"ORCHEO_WORKER_ISOLATION={replaced.isolation.value}",
    )
    return replaced
