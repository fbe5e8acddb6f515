"""The worker process: a Celery worker with one task, which executes runs."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from kombu.entity import Queue

from orcheo_dispatch.shared.broker.app import EXECUTE_RUN, INSTALLATION_HEADER, RETURNS_HEADER, make_app
from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.consumer.consumer import Consumer
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.process.entry import lazy_app
from orcheo_dispatch.shared.process.stopping import obey_signals
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.lifecycle import Lifecycle
from orcheo_dispatch.worker.messages.message import read_claims
from orcheo_dispatch.worker.messages.wire import Wire
from orcheo_dispatch.worker.run import take

_TAKING_THREADS = 2
"""Celery's concurrency: number of messages whose runs are begun in parallel. No thread waits for a run to end."""


def make_worker_app(settings: Settings, installation: Installation) -> Celery:
    """Return the Celery app of a worker process; its runtime starts and stops with the Celery worker."""
    app = make_app("orcheo-worker", settings, installation)
    app.conf.update(
        worker_pool="threads",
        worker_concurrency=_TAKING_THREADS,
        task_queues=[Queue(installation.queue(name)) for name in settings.queues],
        task_default_queue=installation.queue(settings.queues[0]),
    )
    lifecycle = Lifecycle(settings, installation, Wire(app, installation))
    app.conf.worker_consumer = partial(Consumer, intake=lifecycle, on_lost=lifecycle.metrics.broker_failed)
    obey_signals(app, lifecycle.cuts_short)
    lifecycle.connect()

    @app.task(name=EXECUTE_RUN, bind=True, ignore_result=True)
    def execute(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
        try:
            claims = [] if _wants_more(self.request) else read_claims(args, kwargs)
            if not claims:
                # `Ignore` also keeps Celery from running follow-up tasks that the message names.
                lifecycle.metrics.message_taken("malformed")
                raise Ignore
            take(lifecycle.runtime, claims, returns=_returns_of(self.request), queue=_queue_of(self.request, app))
        finally:
            lifecycle.seen_to()

    return app


def _returns_of(request: Any) -> int | None:
    """Return how often workers that did not know the runs put the message back; None if it must not be put back."""
    headers = request.headers or {}
    returns = headers.get(RETURNS_HEADER)
    return returns if headers.get(INSTALLATION_HEADER) and type(returns) is int and returns >= 0 else None


def _queue_of(request: Any, app: Celery) -> str | None:
    """Return the queue from which a message was delivered, if this worker consumes it."""
    name = (request.delivery_info or {}).get("routing_key")
    return name if name in {queue.name for queue in app.conf.task_queues} else None


def _wants_more(request: Any) -> bool:
    """Return whether a message asks for follow-up tasks or for a Celery time limit; ours never do."""
    limited = any(request.timelimit or ())
    more = bool(request.callbacks or request.errbacks or request.chord or request.chain)
    if more or limited:
        log.warning("malformed_message", error="follow-up tasks" if more else "time limit")
    return more or limited


def _make(settings: Settings) -> Celery:
    return make_worker_app(settings, find_installation(settings))


def __getattr__(name: str) -> Any:
    """Make `app` when the `celery` command asks for it, not at import."""
    return lazy_app(name, __name__, _make)
