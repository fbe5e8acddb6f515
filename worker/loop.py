"""The one event loop of a worker process, on a thread of its own.

Clients that libraries cache (of models, of databases) belong to the loop they were made on. So all runs of
a process share one loop, and it is never closed while the process lives.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared.logs import describe, log
from worker.runner.at_work import AtWork, at_work


class EventLoop:
    """Runs coroutines for other threads.

    `threads` bounds what runs may do at a time in `asyncio.to_thread`, which is where LangGraph executes nodes
    that are plain functions. asyncio's own bound, five more than the cores, is meant for one program, not for
    as many as run here.
    """

    def __init__(self, *, threads: int) -> None:
        self.loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="run")
        self.loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run, name="event-loop", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def submit[T](self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run the coroutine as a task of the loop; cancelling the future cancels the task."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call[T](self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run the coroutine and wait for its result. Raises `TimeoutError` after `timeout` seconds."""
        return self.submit(coroutine).result(timeout)

    def at_work(self) -> AtWork:
        """Return what holds the loop now, from any thread."""
        return at_work(self.loop, self._thread.ident or 0)

    def abandon_threads(self) -> None:
        """Let the threads of runs end when they will: no run waits for them any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # A workflow that calls sys.exit() ends its own run, not the loop that its neighbours run on.
                log.warning("exit_of_workflow_refused", **describe(error))
