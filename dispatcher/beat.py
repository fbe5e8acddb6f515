"""Beat's schedule: one tick per poll interval, one cron message per cron interval.

It can also be started with `celery -A orcheo_dispatch.dispatcher.beat beat`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.beat import Scheduler, SchedulingError
from celery.signals import beat_init
from kombu.connection import Connection

from orcheo_dispatch.dispatcher.beat_installation import BeatInstallation
from orcheo_dispatch.shared.broker.app import (
    BEAT_HEADER,
    CRON,
    CRON_IN_WORKER,
    INSTALLATION_HEADER,
    TICK,
    broker_errors,
    connect,
    make_app,
)
from orcheo_dispatch.shared.broker.faults import is_read_only
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE, Installation
from orcheo_dispatch.shared.broker.state import BrokerState, reconnect
from orcheo_dispatch.shared.errors import BrokerError, DispatchError
from orcheo_dispatch.shared.health.checks import condition, progress
from orcheo_dispatch.shared.health.server import health_routes, serve_health
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import BeatMetrics
from orcheo_dispatch.shared.process.entry import fail, lazy_app
from orcheo_dispatch.shared.process.notify import ServiceManager
from orcheo_dispatch.shared.process.progress import ProgressWatch, Watched, exit_now
from orcheo_dispatch.shared.process.stopping import take_hangups
from orcheo_dispatch.shared.settings.environment import cron_interval_note
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import CronMode

_MAX_WAITING_TICKS = 10
_MAX_WAITING_CRON = 1
"""One message is enough: its receiver dispatches all due triggers."""
_PATIENCE_SECONDS = 30.0
_PATIENCE_INTERVALS = 5
_STOP_SECONDS = 5.0
"""How long a stop waits for a request to Redis that is under way."""


class TickScheduler(Scheduler):
    """Celery's scheduler; it sends nothing while earlier messages wait, and logs each change of state once.

    The schedule is kept in memory, since it needs no file. Messages have no expiry, because one host's clock would
    set it and another's would check it. Instead, nothing is sent while ten messages wait in the queue, or one for cron
    in workers.

    A signal only sets a flag. Celery's handler raises `SystemExit` wherever the process is, and Python ignores
    exceptions in finalizers and callbacks of the garbage collector: Beat would go on.
    """

    def __init__(
        self,
        *args: Any,
        installation: Callable[[], Installation | None],
        metrics: BeatMetrics,
        on_closing: Callable[[], None],
        **kwargs: Any,
    ) -> None:
        """`installation` returns whose dispatchers get the ticks; None means all. Other arguments are Celery's."""
        self.broker = BrokerState("beat", metrics.broker_failed)
        self.turned_at = time.monotonic()
        """`time.monotonic()` of the last schedule entry handled, sent or not, or of the last reconnection attempt."""
        self.sent_at = float("-inf")
        """`time.monotonic()` of the last tick that was sent."""
        self._installation = installation
        self._metrics = metrics
        self._on_closing = on_closing
        self._stopping = threading.Event()
        self._closed = threading.Event()
        super().__init__(*args, **kwargs)
        self._client = connect(self.app.broker_url)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due, then wait until the next message is; return 0. Raises `SystemExit` after `stop`."""
        if self._stopping.wait(super().tick(*args, **kwargs)):
            raise SystemExit(0)
        return 0.0

    def adjust(self, n: Any, *_: Any) -> Any:
        """Return `n`, the seconds until an entry is due. Celery subtracts 10 ms, and reads the clock in a loop then."""
        return n

    def stop(self) -> None:
        """End this process in order, or after `_STOP_SECONDS` in any case. Not to be called on the main thread."""
        self._on_closing()
        self._stopping.set()
        if not self._closed.wait(_STOP_SECONDS):
            # Redis does not answer. There is nothing to save.
            os._exit(0)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a due message, unless enough of them already wait in the queue. Never raises."""
        installation = self._installation()
        queue = installation.dispatch if installation else OLD_DISPATCH_QUEUE
        if entry.task == CRON_IN_WORKER:
            if installation is None:
                # Which workers to ask is unknown. They notice on their own that no process dispatches cron triggers.
                return
            queue = installation.cron
        entry.options["queue"] = queue
        if installation:
            entry.options["headers"] = {**entry.options.get("headers", {}), INSTALLATION_HEADER: installation.name}
        try:
            is_tick = entry.task == TICK
            with broker_errors():
                waiting: Any = self._client.llen(queue)
            if waiting < (_MAX_WAITING_CRON if entry.task == CRON_IN_WORKER else _MAX_WAITING_TICKS):
                self.apply_async(entry, producer=producer, advance=False)
                if is_tick:
                    self.sent_at = time.monotonic()
                    self._metrics.tick_sent()
        except (SchedulingError, BrokerError) as error:
            self.broker.lost(error)
            if is_read_only(error):
                self._leave_server()
        else:
            self.broker.back()
        self.turned_at = time.monotonic()

    def _ensure_connected(self) -> Connection:
        return reconnect(self.connection, self.broker, self._turn)

    def close(self) -> None:
        """Record that the schedule is no longer followed: there is nothing to save."""
        super().close()
        self._closed.set()

    def _leave_server(self) -> None:
        """Reconnect for the next entry: if a server became read-only, its address may lead to the new primary."""
        # Celery creates `producer` and `connection` again on next use.
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            connection.release()
        self._client.connection_pool.disconnect()

    def _turn(self) -> None:
        if self._stopping.is_set():
            raise SystemExit(0)
        self.turned_at = time.monotonic()


def make_beat_app(settings: Settings) -> Celery:
    """Return the Celery app of Beat. Several Beats may run at once: ticks are coalesced.

    Beat can stay alive without ticking: blocked on a socket, or waiting for a host clock that was set back.
    It then exits, so that its service manager restarts it; in the meantime dispatchers poll on their own.
    """
    app = make_app("orcheo-beat", settings, None)
    beat_id = str(uuid4())
    manager = ServiceManager()
    identity = {BEAT_HEADER: {"id": beat_id, "host": socket.gethostname(), "pid": os.getpid()}}
    metrics = BeatMetrics(settings, UUID(beat_id))
    installation = BeatInstallation(settings)
    patience = max(_PATIENCE_SECONDS, _PATIENCE_INTERVALS * settings.poll_interval)

    def start(sender: Any, **_: Any) -> None:
        scheduler: TickScheduler = sender.scheduler
        installation.start()
        live = [progress("turn", "turn of the schedule", lambda: scheduler.turned_at, patience)]
        # No tick is sent while Redis is unavailable, or while earlier ticks wait.
        sent = progress("tick", "tick sent", lambda: scheduler.sent_at, patience, patient=False)
        try:
            broker = condition("broker", lambda: scheduler.broker.problem, "Redis answers")
            serve_health(settings, health_routes(live=live, ready=[*live, sent, broker], metrics=metrics.read))
        except DispatchError as error:
            fail(error)
        ticking = Watched("beat", lambda: time.monotonic() - scheduler.turned_at < patience, (exit_now,), patience=0)

        def on_well() -> None:
            manager.status(scheduler.broker.problem or "ticking")
            manager.feed()

        def stop(*_: Any) -> None:
            # On a thread, since the interrupted code may hold the lock of a condition.
            threading.Thread(target=scheduler.stop, name="signal", daemon=True).start()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, stop)
        take_hangups(stop)
        manager.ready("ticking")
        ProgressWatch(ticking, on_well=on_well).start()
        log.info("beat_started", beat_id=beat_id, seconds=settings.poll_interval, cron=settings.cron_mode.value)
        if (note := cron_interval_note()) is not None:
            log.info("cron_interval_from_orcheo", **note)

    beat_init.connect(start, weak=False)
    app.conf.beat_scheduler = partial(
        TickScheduler,
        installation=lambda: installation.known,
        metrics=metrics,
        on_closing=lambda: manager.stopping("stopping"),
    )
    app.conf.beat_schedule = {
        "tick": {
            "task": TICK,
            "schedule": settings.poll_interval,
            "options": {"headers": identity, "retry": False},
        }
    }
    if settings.cron_mode is not CronMode.OFF:
        in_worker = settings.cron_mode is CronMode.WORKER
        app.conf.beat_schedule["cron"] = {
            "task": CRON_IN_WORKER if in_worker else CRON,
            "schedule": settings.cron_interval,
            "options": {"retry": False},
        }
    return app


def __getattr__(name: str) -> Any:
    """Create `app` on first access by the `celery` command, not at import."""
    return lazy_app(name, __name__, make_beat_app)
