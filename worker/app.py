"""The worker process: a Celery worker whose one task executes a run. `celery -A worker.app worker`."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

from celery import Celery
from celery.signals import (
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)
from kombu.entity import Queue

from shared.broker import EXECUTE_RUN, make_app
from shared.entry import fail, lazy_app
from shared.errors import DatabaseError, DispatchError
from shared.ledger import Claim
from shared.logs import log
from shared.settings import Settings, WorkerPool
from worker.executor import load_executor
from worker.message import read_claim
from worker.run import execute_run
from worker.runtime import Runtime, start_runtime


def make_worker_app(settings: Settings) -> Celery:
    """Return the app of a worker process.

    Under the threads pool the runtime starts with the worker; under prefork each child starts its own, and
    learns of a drain by an event that it inherits: a signal to the children would cut their work short.
    """
    app = make_app("orcheo-worker", settings)
    app.conf.update(
        worker_pool=settings.pool.value,
        worker_concurrency=settings.concurrency,
        task_queues=[Queue(settings.queue)],
        task_default_queue=settings.queue,
    )
    running: list[Runtime] = []

    @app.task(name=EXECUTE_RUN, ignore_result=True)
    def execute(*args: Any, **kwargs: Any) -> None:
        claim = read_claim(args, kwargs)
        if claim is not None:
            _execute(running[0], claim)

    draining = multiprocessing.get_context("fork").Event()

    def start(**_: Any) -> None:
        try:
            running.append(start_runtime(settings))
        except DispatchError as error:
            fail(error)

    def start_child(**_: Any) -> None:
        start()
        threading.Thread(target=drain_with_parent, name="drain", daemon=True).start()

    def drain_with_parent() -> None:
        draining.wait()
        drain()

    def tell_children(**_: Any) -> None:
        draining.set()

    def drain(**_: Any) -> None:
        for runtime in running:
            runtime.drain()

    def stop(**_: Any) -> None:
        while running:
            running.pop().stop()

    if settings.pool is WorkerPool.THREADS:
        worker_init.connect(start, weak=False)
        worker_shutting_down.connect(drain, weak=False)
        worker_shutdown.connect(stop, weak=False)
    else:
        load_executor(settings.executor)  # once, before the fork: a wrong name fails here, and memory is shared
        worker_process_init.connect(start_child, weak=False)
        worker_shutting_down.connect(tell_children, weak=False)
        worker_process_shutdown.connect(stop, weak=False)
    return app


def _execute(runtime: Runtime, claim: Claim) -> None:
    try:
        execute_run(runtime, claim)
    except DatabaseError as error:
        # Nothing has begun: the lease of the claim runs out, and the dispatcher sees to it.
        log.warning("run_not_begun", run_id=claim.run_id, fence=claim.fence, reason=str(error))


def __getattr__(name: str) -> Any:
    """Make `app` when the `celery` command asks for it, not at import."""
    return lazy_app(name, __name__, make_worker_app)
