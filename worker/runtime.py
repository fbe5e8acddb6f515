"""What one worker process is made of, and in which order it starts and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from shared.broker import connect
from shared.database import make_engine
from shared.errors import DispatchError
from shared.installation import Installation
from shared.ledger import ProcessKind
from shared.library_logs import route_again
from shared.logs import describe, log
from shared.metrics import WorkerMetrics
from shared.processes import Process
from shared.progress import ProgressWatch, Watched
from shared.ration import Ration
from shared.settings import Settings, WorkerPool
from shared.slots import RunSlots
from shared.store import Store
from worker.aftermath import Aftermaths
from worker.beginning import Beginner
from worker.cron import make_cron
from worker.deadlines import Deadlines
from worker.execution import Execution, Executions, Stop
from worker.executor import load_executor
from worker.failing import Failing
from worker.heartbeat import Heartbeat
from worker.loop import EventLoop
from worker.loop_watch import LoopWatch
from worker.old_queue import OldQueue
from worker.run import abandon, ending_for, finish
from worker.settling import Settler
from worker.strangers import Strangers
from worker.upkeep import Upkeep
from worker.wire import Wire

_CONNECTIONS = 6
"""Two messages at a time are answered, one batch is settled, parts of others may be, and traces are closed."""
_MIN_THREADS = 8
_OPEN_TIMEOUT_SECONDS = 300.0
_CLOSE_TIMEOUT_SECONDS = 5.0
_LOOP_PATIENCE_SECONDS = 5.0
_HEARTBEAT_PATIENCE_SECONDS = 60.0
"""A beat may wait for a connection and for a statement, each with a timeout below this. So may a settle."""


class Runtime:
    """The loop, the executor, the heartbeat and the connections of one process."""

    def __init__(self, settings: Settings, installation: Installation, metrics: WorkerMetrics, wire: Wire) -> None:
        concurrency = settings.concurrency if settings.pool is WorkerPool.THREADS else 1
        self.settings = settings
        self.metrics = metrics
        self.wire = wire
        self.process = Process(ProcessKind.WORKER, concurrency=concurrency)
        self.engine = make_engine(settings, role="worker", connections=_CONNECTIONS)
        self.store = Store(self.engine, worker_id=self.process.id)
        self.slots = RunSlots.at(settings.slots_redis_url.get_secret_value())
        self.strangers = Strangers(wire)
        self.said_stale = Ration()
        self._installation = installation
        self._old_queue = OldQueue(
            connect(settings.redis_url.get_secret_value()),
            installation,
            self.store,
            worker_id=self.process.id,
            room=concurrency,
            lease=settings.worker_lease,
        )
        self.executor = load_executor(settings.executor)
        # Orcheo configures logging as it is imported.
        route_again()
        self.executions = Executions(concurrency)
        self.failing = Failing()
        self.deadlines = Deadlines(self.executions, grace=settings.cancel_grace)
        self.settler = Settler(
            self.store,
            metrics,
            ending_of=partial(ending_for, self),
            finish=partial(finish, self),
            abandon=partial(abandon, self),
        )
        self.loop = EventLoop(threads=max(concurrency, _MIN_THREADS))
        self.heartbeat = Heartbeat(settings, self.process, self.executions, metrics)
        self.beginner = Beginner(self.store, metrics, worker_id=self.process.id, lease=settings.worker_lease)
        self.upkeep = Upkeep(settings, self.process, self.executions, metrics)
        self.aftermaths = Aftermaths(
            self.store, self.slots, wire, metrics, note_slots_returned=self.upkeep.note_slots_returned
        )
        self.loop_watch = LoopWatch(self.loop, self.executions, metrics)
        self._cron = make_cron(settings, installation, self.executor, metrics, wake=wire.wake_dispatchers)
        self.on_stalled: Callable[[], None] = _leave_be
        """What to do where this process cannot execute runs any more."""
        self._progress = ProgressWatch(
            Watched("event loop", self._loop_gets_on, (self._stalled,), _LOOP_PATIENCE_SECONDS),
            Watched("heartbeat", self._heartbeat_gets_on, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("settle", lambda: self.settler.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("group commit", self._executor_gets_on, (self._stalled,), _LOOP_PATIENCE_SECONDS),
            Watched("upkeep", lambda: self.upkeep.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
            Watched("aftermath", lambda: self.aftermaths.makes_progress, (self._stalled,), _HEARTBEAT_PATIENCE_SECONDS),
        )
        self._drain: threading.Timer | None = None

    def start(self) -> None:
        """Open the executor, then beat. Raises `DispatchError`, or whatever the executor raises."""
        began = time.monotonic()
        self.loop.start()
        open_executor = getattr(self.executor, "open", None)
        if open_executor is not None:
            self.loop.call(open_executor(), _OPEN_TIMEOUT_SECONDS)
        # Before the ledger knows this worker: one that it knows and that does not say so is of an earlier release.
        self._old_queue.start()
        self.upkeep.start()
        self.heartbeat.start()
        self.settler.start()
        self.aftermaths.start()
        self.deadlines.start()
        self.metrics.capacity(self.process.concurrency)
        self._progress.start()
        if self._cron is not None:
            self._cron.start()
        log.info(
            "worker_started",
            worker_id=str(self.process.id),
            installation=self._installation.name,
            concurrency=self.process.concurrency,
            executor=self.settings.executor,
            seconds=round(time.monotonic() - began, 2),
        )

    def execute(self, executions: Sequence[Execution]) -> None:
        """Have the loop execute these runs, from any thread."""

        def start() -> None:
            for execution in executions:
                execution.start(self.executor, self.loop)

        self.loop.loop.call_soon_threadsafe(start)

    def drain(self, *, at_once: bool = False) -> None:
        """Let the runs under way finish for the drain time, then stop them; `at_once`, or again, to stop them now.

        Returns at once. Celery takes no more messages by then, and gives back to Redis what it had not started.
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
        """End in order: wait for the runs under way, close the executor, say goodbye, close the connections."""
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
        close_executor = getattr(self.executor, "close", None)
        if close_executor is not None:
            try:
                self.loop.call(close_executor(), _CLOSE_TIMEOUT_SECONDS)
            except Exception as error:  # noqa: BLE001 - an executor that cannot close must not keep us from saying goodbye
                log.warning("executor_not_closed", **describe(error))
        self._progress.stop()
        self.heartbeat.stop()
        self.upkeep.stop()
        self._old_queue.close()
        self.loop.abandon_threads()
        self.slots.close()
        self.engine.dispose()
        log.info("worker_stopped", worker_id=str(self.process.id))

    @property
    def well_at(self) -> float:
        """`time.monotonic()` of when loop and heartbeat were last found to get on."""
        return self._progress.well_at

    def _loop_gets_on(self) -> bool:
        self.loop_watch.look()
        return not self.loop_watch.hopeless

    def _heartbeat_gets_on(self) -> bool:
        self.heartbeat.stop_what_was_not_renewed()
        return self.heartbeat.gets_on

    def _executor_gets_on(self) -> bool:
        return bool(getattr(self.executor, "makes_progress", True))

    def _stalled(self) -> None:
        self.on_stalled()

    def _stop_runs(self) -> None:
        stopped = self.executions.stop_all(Stop.DRAINED)
        if stopped:
            log.warning("drain_timed_out", stopped=stopped)


def _leave_be() -> None:
    """Do nothing."""


def start_runtime(settings: Settings, installation: Installation, metrics: WorkerMetrics, wire: Wire) -> Runtime:
    """Return a started runtime. Raises `DispatchError` where it cannot start."""
    runtime = Runtime(settings, installation, metrics, wire)
    try:
        runtime.start()
    except DispatchError:
        raise
    except Exception as error:
        at = describe(error).get("at", "?")
        raise DispatchError(f"executor {settings.executor!r} did not open: {type(error).__name__} at {at}") from error
    return runtime
