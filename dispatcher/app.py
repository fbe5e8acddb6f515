"""The dispatcher process: a small Celery worker that polls on each tick and hint.

It can also be started with `celery -A orcheo_dispatch.dispatcher.app worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from celery import Task
from celery.signals import worker_init, worker_ready, worker_shutdown, worker_shutting_down
from kombu.entity import Queue

from orcheo_dispatch.dispatcher.backlog import Backlog
from orcheo_dispatch.dispatcher.claiming import Claimer
from orcheo_dispatch.dispatcher.cron import DispatcherCron
from orcheo_dispatch.dispatcher.loop import SILENT_INTERVALS, PollLoop
from orcheo_dispatch.dispatcher.page import StatusPage
from orcheo_dispatch.dispatcher.poll import Poller
from orcheo_dispatch.dispatcher.publishing.broker_gate import BrokerGate
from orcheo_dispatch.dispatcher.publishing.outgoing import Outgoing
from orcheo_dispatch.dispatcher.publishing.publish import Publisher
from orcheo_dispatch.dispatcher.publishing.queue_choice import QueueChoice
from orcheo_dispatch.dispatcher.recovery import Recovery
from orcheo_dispatch.dispatcher.steps import Steps
from orcheo_dispatch.dispatcher.upkeep import Upkeep
from orcheo_dispatch.dispatcher.wakeups.admit import Admitter
from orcheo_dispatch.dispatcher.wakeups.hints import HintListener
from orcheo_dispatch.dispatcher.wakeups.listen import NotifyListener
from orcheo_dispatch.dispatcher.wakeups.ticks import beat_of
from orcheo_dispatch.shared.alerts.teller import Teller, teller_of
from orcheo_dispatch.shared.broker.app import BEAT_HEADER, CRON, TICK, ask_for_cron, connect, make_app
from orcheo_dispatch.shared.broker.celery_app import App
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE, Installation, find_installation
from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.consumer.consumer import Consumer
from orcheo_dispatch.shared.consumer.intake import PoolIntake
from orcheo_dispatch.shared.consumer.progress import watch_consumer
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.database.refused import Refused
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError, DispatchError
from orcheo_dispatch.shared.health.checks import condition, progress
from orcheo_dispatch.shared.health.routes import Route
from orcheo_dispatch.shared.health.server import HealthServer, health_routes, serve_health
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX, ProcessKind, Push
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.process.entry import fail, lazy_app
from orcheo_dispatch.shared.process.notify import ServiceManager
from orcheo_dispatch.shared.process.progress import ProgressWatch, Watched, exit_now
from orcheo_dispatch.shared.process.stopping import obey_signals
from orcheo_dispatch.shared.schema.api_table import index_is_valid
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.traces.claims import ClaimTraces
from orcheo_dispatch.shared.traces.switch import make_sink

_CONNECTIONS = 3
_POLL_LIMIT_SECONDS = 5.0
_POLL_PATIENCE_SECONDS = 120.0
"""A poll is about ten statements, each with a timeout: one that is this much overdue has hung."""
_UPKEEP_PATIENCE_SECONDS = 600.0
"""A round returns up to 1,000 slots, one round trip to Redis per slot."""
_LOCK_TIMEOUT_SECONDS = 1.0
"""The time that a step waits for a lock; locked rows are skipped without waiting."""


class Dispatcher:
    """The components of a dispatcher process. The command `orcheo-dispatch poll` uses them without `start`."""

    def __init__(self, settings: Settings, app: App, installation: Installation) -> None:
        self.process = Process(ProcessKind.DISPATCHER, triggers=settings.triggers)
        self.metrics = DispatcherMetrics(settings, self.process.id)
        self._spans = make_sink(settings, "orcheo-dispatcher", self.process.id, self.metrics)
        self.engine = make_engine(settings, role="dispatcher", connections=_CONNECTIONS)
        self.broker = connect(settings.redis_url.get_secret_value())
        self.slots = RunSlots.at(settings.slots_redis_url.get_secret_value())
        self._app = app
        self.cron = DispatcherCron(settings, installation, self.metrics, pass_on=self._ask_worker_for_cron)
        refused = Refused(on_change=self.metrics.steps.refused)
        store = Store(self.engine, refused=refused, lock_timeout=_LOCK_TIMEOUT_SECONDS)
        self._admitter = Admitter(settings, store, self.process.id)
        self._upkeep_engine = make_engine(settings, role="dispatcher upkeep", connections=1)
        self.upkeep = Upkeep(
            settings,
            engine=self._upkeep_engine,
            store=Store(self._upkeep_engine, refused=refused, lock_timeout=_LOCK_TIMEOUT_SECONDS),
            slots=self.slots,
            process=self.process,
            metrics=self.metrics,
        )
        gate = BrokerGate(self.broker, installation, self.metrics)
        traces = ClaimTraces(self._spans)
        queue_choice = QueueChoice(store, self.broker, installation, lease=settings.worker_lease)
        self.poller = Poller(
            settings,
            claimer=Claimer(settings, store, self.process.id, traces),
            outgoing=Outgoing(
                settings,
                store,
                installation=installation,
                publisher=Publisher(app, installation),
                gate=gate,
                queue_choice=queue_choice,
                traces=traces,
            ),
            recovery=Recovery(settings, store, gate, self.metrics, on_reaped=self.upkeep.reaped),
            steps=Steps(self.engine, self.metrics),
            metrics=self.metrics,
        )
        self.loop = PollLoop(
            self.poller,
            self.process,
            self.engine,
            interval=settings.poll_interval,
            metrics=self.metrics,
            upkeep=self.upkeep,
        )
        self._consumer: Consumer | None = None
        self._progress: ProgressWatch | None = None
        self._manager = ServiceManager()
        self._hint_client = connect(settings.redis_url.get_secret_value())
        self._hints = HintListener(
            self._hint_client, on_pushes=self._pushed, on_cron=self._cron_soon, interval=settings.poll_interval
        )
        self._listener = NotifyListener(settings, self.engine, on_notify=self._notified, on_change=self.metrics.listens)
        self._backlog = Backlog(settings, installation, self.broker)
        self.metrics.add(self._backlog)
        self._settings = settings
        self._installation = installation
        self._health: HealthServer | None = None
        self._page = StatusPage(settings, self.process)
        self._teller: Teller | None = None

    def start(self) -> None:
        """Start polling and listening for hints.

        Raises `SettingsError` if the health port is in use, or if alerts cannot be sent where the settings say.
        """
        self._teller = teller_of(
            self._settings, process=self.process, installation=self._installation, metrics=self.metrics
        )
        self._health = serve_health(self._settings, self._routes())
        self._look_for_index()
        self.loop.start()
        self.upkeep.start()
        self._hints.start()
        self._listener.start()
        self.cron.start()
        if self._teller is not None:
            self._teller.start()
        log.info("dispatcher_started", dispatcher_id=str(self.process.id), installation=self._installation.name)

    def watch(self, consumer: Consumer) -> None:
        """Start watching that ticks are consumed and that polls and upkeep rounds end."""
        self._consumer = consumer
        polls = Watched("polls", lambda: not self.loop.overdue(_POLL_PATIENCE_SECONDS), (exit_now,), patience=0)
        keeping = Watched("upkeep", lambda: not self.upkeep.overdue(_UPKEEP_PATIENCE_SECONDS), (exit_now,), patience=0)
        taking = watch_consumer(consumer, self.broker, [self._installation.dispatch], self.metrics)
        # Not based on /livez: it also fails while Postgres is unavailable, which a restart would not fix.
        self._progress = ProgressWatch(taking, polls, keeping, on_well=self._feed)
        self._manager.ready("polling")
        self._progress.start()

    def stopping(self) -> None:
        """Tell the service manager that this process is stopping."""
        self._manager.stopping("finishing the current poll")

    def stop(self) -> None:
        """Finish the current poll and deregister. Published claims keep their leases."""
        if self._progress is not None:
            self._progress.stop()
        self._hints.stop()
        self._listener.stop()
        if self._teller is not None:
            self._teller.stop()
        self.cron.stop()
        self.loop.stop()
        self.upkeep.stop()
        try:
            self.process.gone(self.engine)
        except DatabaseError as error:
            log.warning("deregister_failed", reason=str(error))
        self.close()
        log.info("dispatcher_stopped", dispatcher_id=str(self.process.id))

    def close(self) -> None:
        """Close all connections."""
        if self._spans is not None:
            self._spans.stop()
        if self._health is not None:
            self._health.stop()
        self._page.close()
        self.metrics.close()
        self._backlog.close()
        self._hint_client.close()
        self.broker.close()
        self.slots.close()
        self.engine.dispose()
        self._upkeep_engine.dispose()

    def _look_for_index(self) -> None:
        """Warn if the index on pending runs is missing: polls then read the whole table, and dispatch still works."""
        try:
            with transaction(self.engine) as connection:
                if not index_is_valid(connection):
                    log.warning("index_missing", index=PENDING_INDEX, remedy="orcheo-dispatch migrate")
        except DatabaseError as error:
            log.warning("index_check_failed", reason=str(error))

    def _routes(self) -> dict[str, Route]:
        limit = max(_POLL_LIMIT_SECONDS, SILENT_INTERVALS * self._settings.poll_interval)
        live = [progress("poll", "poll succeeded", lambda: self.loop.polled_at, limit)]
        broker = condition("broker", self._broker_problem, "Redis answers")
        routes = health_routes(live=live, ready=[*live, broker], metrics=self.metrics.read)
        return {**routes, **self._page.routes([*live, broker])}

    def _feed(self) -> None:
        problem = "Postgres is unavailable" if self.loop.database_away else self._broker_problem()
        self._manager.status(problem or ("maintenance: nothing is claimed" if self.poller.maintenance else "polling"))
        self._manager.feed()

    def _broker_problem(self) -> str | None:
        """Return what is wrong with Redis, as seen by the publisher or by the consumer of ticks; None if nothing."""
        if self.poller.broker_problem is not None:
            return self.poller.broker_problem
        return None if self._consumer is None else self._consumer.problem

    def _pushed(self, pushes: Sequence[Push]) -> dict[Push, bool]:
        self.metrics.hinted("run", len(pushes))
        # Before querying the database: most runs can be claimed whether they were pushed or not.
        self.loop.wake()
        admissions = self._admitter.pushed(pushes)
        if any(admission.admitted for admission in admissions.values()):
            self.loop.wake()
        return {push: admission.known for push, admission in admissions.items()}

    def _notified(self) -> None:
        self.metrics.hinted("notify")
        self.loop.wake()

    def _cron_soon(self) -> None:
        self.metrics.hinted("cron")
        self.cron.asked()

    def _ask_worker_for_cron(self) -> None:
        try:
            ask_for_cron(self._app, self.broker, self._installation.cron)
        except BrokerError as error:
            # Workers notice on their own that no process dispatches cron triggers.
            log.debug("cron_prompt_missing", reason=str(error))


def make_dispatcher_app(settings: Settings, installation: Installation) -> App:
    """Return the Celery app of a dispatcher process; the dispatcher starts together with the Celery worker."""
    app = make_app("orcheo-dispatcher", settings, installation)
    queues = [installation.dispatch, OLD_DISPATCH_QUEUE]
    app.conf.update(worker_pool="threads", worker_concurrency=2, task_queues=[Queue(queue) for queue in queues])
    running: list[Dispatcher] = []

    @app.task(name=TICK, bind=True, ignore_result=True)
    def tick(self: Task[Any, Any]) -> None:
        beat = beat_of((self.request.headers or {}).get(BEAT_HEADER))
        for dispatcher in running:
            if beat is None:
                dispatcher.loop.wake()
            else:
                dispatcher.loop.tick(beat)

    @app.task(name=CRON, ignore_result=True)
    def cron() -> None:
        for dispatcher in running:
            dispatcher.cron.asked()

    def start(**_: Any) -> None:
        try:
            dispatcher = Dispatcher(settings, app, installation)
            dispatcher.start()
        except DispatchError as error:
            fail(error)
        running.append(dispatcher)

    def watch(sender: Consumer, **_: Any) -> None:
        for dispatcher in running:
            dispatcher.watch(sender)

    def stopping(**_: Any) -> None:
        for dispatcher in running:
            dispatcher.stopping()

    def stop(**_: Any) -> None:
        while running:
            running.pop().stop()

    def broker_lost() -> None:
        for dispatcher in running:
            dispatcher.metrics.broker_failed()

    app.conf.worker_consumer = partial(Consumer, intake=PoolIntake(), on_lost=broker_lost)
    obey_signals(app)
    worker_init.connect(start, weak=False)
    worker_ready.connect(watch, weak=False)
    worker_shutting_down.connect(stopping, weak=False)
    worker_shutdown.connect(stop, weak=False)
    return app


def _make(settings: Settings) -> App:
    return make_dispatcher_app(settings, find_installation(settings))


def __getattr__(name: str) -> Any:
    """Create `app` on first access by the `celery` command, not at import."""
    return lazy_app(name, __name__, _make)
