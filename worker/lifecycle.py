"""When the runtime of a worker starts, drains and stops: Celery's signals, told in order for each pool."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from celery.concurrency import get_implementation
from celery.signals import (
    task_received,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import state

from shared.broker import connect
from shared.checks import Check, below, condition, progress
from shared.consumer import Consumer, watch_consumer
from shared.entry import fail
from shared.errors import DispatchError, SettingsError
from shared.health import HealthServer, health_routes, serve_health
from shared.installation import Installation
from shared.library_logs import drop_prints, route_again
from shared.logs import log
from shared.metrics import WorkerMetrics
from shared.notify import ServiceManager
from shared.progress import EXIT_STALLED, LOOK_SECONDS, ProgressWatch
from shared.settings import LostRuns, Settings, WorkerPool
from worker.execution import Execution
from worker.executor import load_executor
from worker.loop_watch import LAG_LIMIT_SECONDS
from worker.runtime import Runtime, start_runtime
from worker.wire import Wire

_END_SECONDS = 5.0
_CLOSE_SECONDS = 30.0
"""That closing the executor, saying goodbye and ending may take after the last run; more than all their timeouts."""
_WELL_SECONDS = 10.0
"""The runtime's own watch looks each second, and waits for nothing."""
_MIN_LIMIT_SECONDS = 5.0
_SETTLE_SECONDS = 60.0
"""An attempt may wait for a connection and for a statement; the thread turns each second where it has nothing to do."""
_AT_ONCE = "SIGQUIT"


class Lifecycle:
    """Ties a runtime to the Celery worker around it.

    Under `threads` there is one runtime, in the worker's process. Under `prefork` each child has its own, and
    learns of a drain by events that it inherits: a signal sent to the children would cut their work short.
    A second signal to stop, or SIGQUIT, ends the drain: runs that still execute are stopped at once.
    """

    def __init__(self, settings: Settings, installation: Installation, wire: Wire) -> None:
        self._settings = settings
        self._installation = installation
        self._wire = wire
        self._runtime: Runtime | None = None
        self.metrics = WorkerMetrics.of_parent(settings, uuid4())
        self._health: HealthServer | None = None
        self._left = False
        self._consumer: Consumer | None = None
        # Celery's own count goes down only after the task has returned, when nobody is woken any more.
        self._in_hand = 0
        self._in_hand_lock = threading.Lock()
        self._progress: ProgressWatch | None = None
        # Before the fork, and used by the parent alone.
        self._manager = ServiceManager()
        fork = multiprocessing.get_context("fork")
        self._draining, self._stopping = fork.Event(), fork.Event()
        if settings.pool is WorkerPool.PREFORK:
            # Once, before the fork: a wrong name fails here, and what is imported is shared by the children.
            load_executor(settings.executor)
            route_again()

    @property
    def runtime(self) -> Runtime:
        """Return the runtime of this process."""
        assert self._runtime is not None
        return self._runtime

    def connect(self) -> None:
        """Listen to Celery's signals."""
        worker_init.connect(self._refuse_another_pool, weak=False)
        worker_ready.connect(self._watch, weak=False)
        worker_shutting_down.connect(self._say_stopping, weak=False)
        if self._settings.pool is WorkerPool.THREADS:
            worker_init.connect(self._start, weak=False)
            task_received.connect(self._note_received, weak=False)
            worker_shutting_down.connect(self._drain, weak=False)
            worker_shutdown.connect(self._stop, weak=False)
        else:
            worker_process_init.connect(self._start_child, weak=False)
            worker_shutting_down.connect(self._tell_children, weak=False)
            worker_process_shutdown.connect(self._stop, weak=False)

    def _refuse_another_pool(self, sender: Any, **_: Any) -> None:
        pool = get_implementation(sender.pool_cls)
        if pool is not get_implementation(self._settings.pool.value):
            given = pool.__module__.rpartition(".")[2]
            fail(
                SettingsError.wrong("ORCHEO_WORKER_POOL", self._settings.pool.value, f"what -P says, which is {given}")
            )

    def _start(self, **_: Any) -> None:
        drop_prints()
        try:
            self._runtime = start_runtime(self._settings, self._installation, self.metrics, self._wire)
        except DispatchError as error:
            fail(error)

    def _watch(self, sender: Consumer, **_: Any) -> None:
        """Watch from now on whether the consumer of this process takes what waits."""
        self._broker = connect(self._settings.redis_url.get_secret_value())
        watched = watch_consumer(sender, self._broker, self._installation.runs, self.metrics)
        self._progress = ProgressWatch(watched, on_well=self._feed)
        self._serve_health(sender)
        self._manager.ready(self._status())
        if self._settings.pool is WorkerPool.PREFORK:
            # On a timer of the consumer's own loop: a lock that a thread holds while we fork stays locked in the child.
            sender.timer.call_repeatedly(LOOK_SECONDS, self._progress.look)
            # That loop stands still while Redis is away.
            sender.while_connecting = self._progress.look
            return
        self._progress.start()
        if self._runtime is not None:
            loop_watch, executions = self._runtime.loop_watch, self._runtime.executions
            # A run that holds the loop holds up every other: more of them would only wait.
            sender.paused = lambda: loop_watch.blocked or executions.full
            sender.gives_back = lambda: executions.full and not loop_watch.blocked
            sender.busy = lambda: len(executions) > 0
            # Never more than Celery's own count: what it receives and then drops must not close this door for ever.
            sender.in_hand = lambda: min(self._in_hand, len(state.reserved_requests))
            self._runtime.on_stalled = sender.give_up
            executions.on_room = sender.room_made
            self._consumer = sender

    def _feed(self) -> None:
        """Feed the watchdog where the runtime is well too; children have a parent that looks after them."""
        if self._runtime is None or time.monotonic() - self._runtime.well_at < _WELL_SECONDS:
            self._manager.status(self._status())
            self._manager.feed()

    def _status(self) -> str:
        running = len(self._runtime.executions) if self._runtime is not None else len(state.reserved_requests)
        return f"draining, runs left: {running}" if self._left else f"runs: {running} of {self._settings.concurrency}"

    def _say_stopping(self, **_: Any) -> None:
        self._manager.stopping("draining", self._settings.drain_timeout + self._settings.cancel_grace + _CLOSE_SECONDS)

    def _serve_health(self, consumer: Consumer) -> None:
        """Answer from now on. Under `prefork` for the parent alone: what its children do is in the metrics."""
        live: list[Check] = []
        ready = [
            condition("consumer", lambda: consumer.problem, "connected"),
            condition("drain", lambda: "draining" if self._left else None, "takes runs"),
        ]
        if (runtime := self._runtime) is not None:
            limit = max(_MIN_LIMIT_SECONDS, 3 * self._settings.heartbeat)
            live = [
                progress("heartbeat", "heartbeat begun", lambda: runtime.heartbeat.turned_at, limit),
                below("loop", "loop lag", lambda: runtime.loop_watch.lag, self._settings.worker_lease),
                progress("settle", "settle begun", lambda: runtime.settler.turned_at, _SETTLE_SECONDS),
            ]
            stored = progress(
                "database",
                "heartbeat stored",
                lambda: runtime.heartbeat.beaten_at,
                self._settings.worker_lease,
                patient=False,
            )
            failing = condition("runs", lambda: runtime.failing.why, "not all fail of one error")
            ready = [
                failing,
                below("lag", "loop lag", lambda: runtime.loop_watch.lag, LAG_LIMIT_SECONDS),
                stored,
                *ready,
            ]
        try:
            self._health = serve_health(
                self._settings, health_routes(live=live, ready=[*live, *ready], metrics=self.metrics.read)
            )
        except DispatchError as error:
            fail(error)

    def _start_child(self, **_: Any) -> None:
        self.metrics = self.metrics.of_child(uuid4())
        self._start()
        threading.Thread(target=self._drain_with_parent, name="drain", daemon=True).start()

    def _drain_with_parent(self) -> None:
        for told in (self._draining, self._stopping):
            told.wait()
            self._drain()

    def _tell_children(self, sig: str, **_: Any) -> None:
        self._left = True
        if self._draining.is_set() or sig == _AT_ONCE:
            self._stopping.set()
        self._draining.set()

    def _note_received(self, **_: Any) -> None:
        with self._in_hand_lock:
            self._in_hand += 1

    def seen_to(self) -> None:
        """Say that a message has been seen to: its runs execute, and the next one may come."""
        with self._in_hand_lock:
            self._in_hand -= 1
        if self._consumer is not None:
            self._consumer.room_made()

    def see_through(self, begun: Sequence[Execution]) -> None:
        """Wait, in a child, for the end of its run; end a child whose loop a run still holds: another is started."""
        for execution in begun:
            execution.settled.wait()
        if self.runtime.loop_watch.blocked:
            log.warning("child_given_up", pid=os.getpid())
            # Not os._exit: the pool would count its next message as this child's.
            raise SystemExit(EXIT_STALLED)

    def _drain(self, sig: str = "", **_: Any) -> None:
        self._left = True
        if self._runtime is not None:
            self._runtime.drain(at_once=sig == _AT_ONCE)

    def cuts_short(self) -> bool:
        """Return whether runs are under way that a stop at this moment would not hand over to another worker."""
        under_way = len(self._runtime.executions) if self._runtime is not None else len(state.reserved_requests)
        return under_way > 0 and self._settings.lost_runs is not LostRuns.REQUEUE

    def _stop(self, **_: Any) -> None:
        if self._runtime is not None:
            # Watched, and watched over, to the last run.
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
    """End the process, though a thread that a run has left behind goes on: Python would wait for it."""
    time.sleep(_END_SECONDS)
    log.warning("threads_abandoned", threads=sum(not thread.daemon for thread in threading.enumerate()) - 1)
    os._exit(state.should_stop or 0)
