"""Build the parts of one worker process, and start and stop them in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from orcheo_dispatch.shared.alerts.teller import teller_of
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.cron.loop import CronLoop
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.logs.ration import Ration
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.progress import ProgressWatch, Watched
from orcheo_dispatch.shared.settings.field_types import DEFAULT_QUEUE_NAME
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import InterruptedRuns
from orcheo_dispatch.shared.traces.runs import RunTraces
from orcheo_dispatch.shared.traces.switch import make_sink
from orcheo_dispatch.worker.begin import Beginner
from orcheo_dispatch.worker.cron import make_cron
from orcheo_dispatch.worker.deadlines import Deadlines
from orcheo_dispatch.worker.execution import Execution, Executions, Stop
from orcheo_dispatch.worker.heartbeat import Heartbeat
from orcheo_dispatch.worker.isolation import Isolation
from orcheo_dispatch.worker.messages.old_queue import OldQueue
from orcheo_dispatch.worker.messages.strangers import Strangers
from orcheo_dispatch.worker.messages.wire import Wire
from orcheo_dispatch.worker.runners.orders import BookKeeper
from orcheo_dispatch.worker.runners.pool import RunnerPool
from orcheo_dispatch.worker.settle.aftermath import Aftermaths
from orcheo_dispatch.worker.settle.endings import ending_of, ending_of_stopped, stopped_status
from orcheo_dispatch.worker.settle.failing import Failing
from orcheo_dispatch.worker.settle.finish import Finisher
from orcheo_dispatch.worker.settle.settle import Settler
from orcheo_dispatch.worker.upkeep import Upkeep

_CONNECTIONS = 6
"""Two messages are begun at a time, one batch is settled, parts of others may be settled, and traces are closed."""
_RUNNERS_PATIENCE_SECONDS = 10.0
_HEARTBEAT_PATIENCE_SECONDS = 60.0
"""A heartbeat or a settle may wait for a connection and for a statement, each with a timeout below this (seconds)."""


class Runtime:
    """The runners, the heartbeat, the settler and the connections of one worker."""

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        metrics: WorkerMetrics,
        wire: Wire,
        *,
        on_room: Callable[[], None] | None = None,
        on_stalled: Callable[[], None] | None = None,
    ) -> None:
        """`on_room` is called when there is room for a run again, `on_stalled` when this process cannot continue."""
        self.settings = settings
        self.metrics = metrics
        self.wire = wire
        self.process = Process(ProcessKind.WORKER, concurrency=settings.capacity, queues=settings.queues)
        self._teller = teller_of(settings, process=self.process, installation=installation, metrics=metrics)
        self.engine = make_engine(settings, role="worker", connections=_CONNECTIONS)
        self.store = Store(self.engine, worker_id=self.process.id)
        self.traces = RunTraces(make_sink(settings, "orcheo-worker", self.process.id, metrics))
        self.slots = RunSlots.at(settings.slots_redis_url.get_secret_value())
        self.strangers = Strangers(wire)
        self.said_stale = Ration()
        self._installation = installation
        self._old_queue = OldQueue(
            connect(settings.redis_url.get_secret_value()),
            installation,
            self.store,
            worker_id=self.process.id,
            room=settings.capacity,
            lease=settings.worker_lease,
            consumes=DEFAULT_QUEUE_NAME in settings.queues,
        )
        self.executions = Executions(settings.capacity, on_room)
        self.failing = Failing()
        self.deadlines = Deadlines(self.executions, grace=settings.cancel_grace)
        self.isolation = Isolation(settings)
        self.runners = RunnerPool(
            settings,
            metrics,
            self.isolation,
            make_books=partial(_make_books, settings, self.process.id),
            told_of=self._told_of,
        )
        self.heartbeat = Heartbeat(settings, self.process, self.executions, metrics)
        self.beginner = Beginner(self.store, metrics, worker_id=self.process.id, lease=settings.worker_lease)
        self.upkeep = Upkeep(settings, self.process, self.executions, metrics)
        self.aftermaths = Aftermaths(
            self.store, self.slots, wire, metrics, note_slots_returned=self.upkeep.note_slots_returned
        )
        finisher = Finisher(self.executions, self.aftermaths, self.failing, metrics)
        self.settler = Settler(
            self.store,
            metrics,
            ending_of=self._ending_of,
            finish=finisher.finish,
            abandon=finisher.abandon,
        )
        self._cron: CronLoop | None = None
        self._on_stalled = on_stalled
        self._progress = ProgressWatch(
            Watched("runners", self._runners_get_on, (self._stalled,), _RUNNERS_PATIENCE_SECONDS),
            Watched("heartbeat", self._heartbeat_gets_on, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("settle", lambda: self.settler.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched(
                "group commit", lambda: self.runners.orders.makes_progress, (self._stalled,), _RUNNERS_PATIENCE_SECONDS
            ),
            Watched("isolation", lambda: self.isolation.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("upkeep", lambda: self.upkeep.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("aftermath", lambda: self.aftermaths.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
        )
        self._drain: threading.Timer | None = None

    def start(self) -> None:
        """Open the executor, then start the heartbeat. Raises `DispatchError`, or whatever the executor raises."""
        began = time.monotonic()
        self.isolation.start()
        self.runners.start()
        # Before the ledger lists this worker: a listed worker without this note is of an earlier release.
        self._old_queue.start()
        self.upkeep.start()
        self.heartbeat.start()
        self.settler.start()
        self.aftermaths.start()
        self.deadlines.start()
        self.metrics.capacity(self.process.concurrency)
        self._progress.start()
        self._cron = make_cron(
            self.settings,
            self._installation,
            self.metrics,
            dispatch=self.runners.dispatch_cron if self.runners.has_cron else None,
            wake=self.wire.wake_dispatchers,
        )
        if self._cron is not None:
            self._cron.start()
        if self._teller is not None:
            self._teller.start()
        log.info(
            "worker_started",
            worker_id=str(self.process.id),
            installation=self._installation.name,
            concurrency=self.process.concurrency,
            executor=self.settings.executor,
            seconds=round(time.monotonic() - began, 2),
        )

    def drain(self, *, at_once: bool = False) -> None:
        """Let runs finish within the drain time, then stop them; `at_once`, or a second call, stops them now.

        Returns at once. Celery has stopped taking messages by then and returns unstarted ones to Redis.
        """
        if self._drain is not None:
            threading.Thread(target=self._stop_runs, name="stop", daemon=True).start()
            return
        self._old_queue.drain()
        if self._cron is not None:
            self._cron.begin_stop()
        seconds = 0.0 if at_once else self.settings.drain_timeout
        self._drain = threading.Timer(seconds, self._stop_runs)
        self._drain.daemon = True
        self._drain.start()
        log.info("drain_begun", running=len(self.executions), seconds=seconds)

    def stop(self) -> None:
        """Stop in order: wait for the runs in progress, close the executor, deregister, close the connections."""
        self.executions.wait_until_none()
        self.strangers.stop()
        self._old_queue.stop()
        if self._cron is not None:
            self._cron.stop()
        self.settler.stop()
        self.aftermaths.stop()
        self.deadlines.stop()
        if self._drain is not None:
            self._drain.cancel()
        try:
            self.runners.close()
        except Exception as error:  # noqa: BLE001 - runners end with this process at the latest
            log.warning("runners_not_closed", **describe(error))
        if self._teller is not None:
            self._teller.stop()
        self.isolation.stop()
        self._progress.stop()
        self.heartbeat.stop()
        self.upkeep.stop()
        self.traces.stop()
        self._old_queue.close()
        self.slots.close()
        self.engine.dispose()
        log.info("worker_stopped", worker_id=str(self.process.id))

    @property
    def well_at(self) -> float:
        """`time.monotonic()` of the last check that found no part of this worker stalled."""
        return self._progress.well_at

    def _runners_get_on(self) -> bool:
        return (
            not self.runners.starter.is_hopeless
            and time.monotonic() - self.runners.turned_at < _RUNNERS_PATIENCE_SECONDS
        )

    def _ending_of(self, execution: Execution) -> Ending | None:
        assert execution.result is not None
        return ending_of(self.settings, execution.run, execution.result, execution.timeout)

    def _told_of(self, execution: Execution, stop: Stop) -> tuple[str | None, str]:
        return stopped_status(stop, ending_of_stopped(self.settings, execution.run, stop, execution.timeout))

    def _heartbeat_gets_on(self) -> bool:
        self.heartbeat.stop_what_was_not_renewed()
        return self.heartbeat.gets_on

    def _stalled(self) -> None:
        if self._on_stalled is not None:
            self._on_stalled()

    def _stop_runs(self) -> None:
        stopped = self.executions.stop_all(Stop.DRAINED)
        if stopped:
            log.warning("drain_timed_out", stopped=stopped)


def _make_books(settings: Settings, worker_id: UUID, running: Callable[[], int]) -> BookKeeper:
    # Imported only by workers whose executor wants it.
    from orcheo_dispatch.worker.books.books import Books

    return Books(
        settings.postgres_dsn.get_secret_value(),
        worker_id=worker_id,
        running=running,
        lost_runs=settings.lost_runs,
        waits=settings.interrupted_runs is not InterruptedRuns.SUCCEED,
    )
