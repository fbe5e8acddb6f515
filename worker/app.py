"""The worker process: a Celery worker whose one task executes a run. `celery -A worker.app worker`."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from kombu.entity import Queue

from shared.broker import DISPATCH_QUEUE, EXECUTE_RUN, TICK, broker_errors, make_app
from shared.entry import lazy_app
from shared.errors import BrokerError, DatabaseError
from shared.logs import log
from shared.settings import Settings
from worker.lifecycle import Lifecycle
from worker.message import read_claim
from worker.run import execute_run


def make_worker_app(settings: Settings) -> Celery:
    """Return the app of a worker process; what executes runs starts and stops with the Celery worker."""
    app = make_app("orcheo-worker", settings)
    app.conf.update(
        worker_pool=settings.pool.value,
        worker_concurrency=settings.concurrency,
        task_queues=[Queue(settings.queue)],
        task_default_queue=settings.queue,
    )

    def wake_dispatchers() -> None:
        try:
            with broker_errors():
                app.send_task(TICK, queue=DISPATCH_QUEUE, retry=False, ignore_result=True)
        except BrokerError as error:
            # The next poll finds the run all the same.
            log.debug("dispatchers_not_woken", reason=str(error))

    lifecycle = Lifecycle(settings, wake_dispatchers)
    lifecycle.connect()

    @app.task(name=EXECUTE_RUN, bind=True, ignore_result=True)
    def execute(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
        claim = read_claim(args, kwargs)
        if claim is None or _wants_more(self.request):
            # Nor is anything done that such a message wants to be done afterwards.
            lifecycle.metrics.message_taken("malformed")
            raise Ignore
        try:
            execute_run(lifecycle.runtime, claim)
            lifecycle.after_run()
        except DatabaseError as error:
            # Nothing has begun: the lease of the claim runs out, and the dispatcher sees to it.
            lifecycle.metrics.message_taken("database_away")
            lifecycle.metrics.database_failed()
            log.warning("run_not_begun", run_id=claim.run_id, fence=claim.fence, reason=str(error))

    return app


def _wants_more(request: Any) -> bool:
    """Tell whether a message wants other tasks to follow, or a time limit of Celery's: ours never do.

    Under prefork such a limit takes a run from its heartbeat while its coroutine goes on.
    """
    limited = any(request.timelimit or ())
    more = bool(request.callbacks or request.errbacks or request.chord or request.chain)
    if more or limited:
        log.warning("malformed_message", error="follow-up tasks" if more else "time limit")
    return more or limited


def __getattr__(name: str) -> Any:
    """Make `app` when the `celery` command asks for it, not at import."""
    return lazy_app(name, __name__, make_worker_app)
