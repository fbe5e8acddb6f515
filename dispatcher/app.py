"""The dispatcher process: a small Celery worker that is woken by ticks and hints. `celery -A dispatcher.app worker`."""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery, Task
from celery.signals import worker_init, worker_ready, worker_shutdown

from dispatcher.beat import beat_of
from dispatcher.cron import CronDispatch
from dispatcher.hints import HintListener
from dispatcher.loop import PollLoop
from dispatcher.poll import Poller
from dispatcher.publisher import Publisher
from shared.broker import BEAT_HEADER, CRON, DISPATCH_QUEUE, TICK, connect, make_app
from shared.consumer import Consumer, watch_consumer
from shared.database import make_engine, transaction
from shared.entry import lazy_app
from shared.errors import DatabaseError
from shared.ledger import PENDING_INDEX, ProcessKind
from shared.logs import log
from shared.migrate import index_is_valid
from shared.processes import Process
from shared.progress import ProgressWatch, Watched, exit_now
from shared.settings import Settings
from shared.slots import RunSlots
from shared.store import Store

_CONNECTIONS = 2
_POLL_PATIENCE_SECONDS = 120.0
"""A poll is some ten statements, each with a timeout; one that takes longer will never end."""


class Dispatcher:
    """All that a dispatcher process holds; `poll` alone needs no more than this either."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.process = Process(ProcessKind.DISPATCHER)
        self.engine = make_engine(settings, role="dispatcher", connections=_CONNECTIONS)
        self.broker = connect(settings.redis_url.get_secret_value())
        self.slots = RunSlots.at(settings.slots_redis_url.get_secret_value())
        self.cron = CronDispatch(settings)
        self.poller = Poller(
            settings,
            store=Store(self.engine),
            publisher=Publisher(app, settings.queue),
            broker=self.broker,
            slots=self.slots,
            dispatcher_id=self.process.id,
        )
        self.loop = PollLoop(self.poller, self.process, self.engine, interval=settings.poll_interval)
        self._progress: ProgressWatch | None = None
        self._hint_client = connect(settings.redis_url.get_secret_value())
        self._hints = HintListener(
            self._hint_client, on_run=self.loop.wake, on_cron=self._cron_soon, interval=settings.poll_interval
        )

    def start(self) -> None:
        """Poll from now on, and listen for hints."""
        self._look_for_index()
        self.loop.start()
        self._hints.start()
        log.info("dispatcher_started", dispatcher_id=str(self.process.id))

    def watch(self, consumer: Consumer) -> None:
        """Watch from now on whether ticks are taken and polls end."""
        polls = Watched("polls", lambda: not self.loop.overdue(_POLL_PATIENCE_SECONDS), (exit_now,), patience=0)
        self._progress = ProgressWatch(watch_consumer(consumer, self.broker, DISPATCH_QUEUE), polls)
        self._progress.start()

    def stop(self) -> None:
        """Finish the poll under way and say goodbye. Claims that are out keep their leases."""
        if self._progress is not None:
            self._progress.stop()
        self._hints.stop()
        self.loop.stop()
        try:
            self.process.gone(self.engine)
        except DatabaseError as error:
            log.warning("goodbye_not_said", reason=str(error))
        self.close()
        log.info("dispatcher_stopped", dispatcher_id=str(self.process.id))

    def close(self) -> None:
        """Close all connections."""
        self._hint_client.close()
        self.broker.close()
        self.slots.close()
        self.engine.dispose()

    def _look_for_index(self) -> None:
        """Say where polls will read all runs for want of the index on the pending ones; dispatch works all the same."""
        try:
            with transaction(self.engine) as connection:
                if not index_is_valid(connection):
                    log.warning("index_missing", index=PENDING_INDEX, mend="orcheo-dispatch migrate")
        except DatabaseError as error:
            log.warning("index_not_looked_for", reason=str(error))

    def _cron_soon(self) -> None:
        # The API may take its time; hints must not wait for it.
        threading.Thread(target=self.cron, name="cron", daemon=True).start()


def make_dispatcher_app(settings: Settings) -> Celery:
    """Return the app of a dispatcher process; the dispatcher itself starts with the Celery worker."""
    app = make_app("orcheo-dispatcher", settings)
    app.conf.update(worker_pool="threads", worker_concurrency=2)
    app.amqp.queues.select([DISPATCH_QUEUE])
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
            dispatcher.cron()

    def start(**_: Any) -> None:
        dispatcher = Dispatcher(settings, app)
        dispatcher.start()
        running.append(dispatcher)

    def watch(sender: Consumer, **_: Any) -> None:
        for dispatcher in running:
            dispatcher.watch(sender)

    def stop(**_: Any) -> None:
        while running:
            running.pop().stop()

    worker_init.connect(start, weak=False)
    worker_ready.connect(watch, weak=False)
    worker_shutdown.connect(stop, weak=False)
    return app


def __getattr__(name: str) -> Any:
    """Make `app` when the `celery` command asks for it, not at import."""
    return lazy_app(name, __name__, make_dispatcher_app)
