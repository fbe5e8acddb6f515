"""Provide threads for blocking code of runs, such that no run can take them all."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS_PER_RUN = 8
"""Maximum per run; the standard library's default for a process with one run is 6 on 2 cores."""
MOST_THREADS = 256


class FairThreads(ThreadPoolExecutor):
    """A loop's default executor. Calls that a run submits above its share wait for its own threads only.

    `whose` returns the run that is calling, or None. Threads are created only when needed.
    """

    def __init__(self, whose: Callable[[], Hashable | None]) -> None:
        super().__init__(MOST_THREADS, thread_name_prefix="run")
        self._whose = whose
        self._guard = threading.Lock()
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[_Call]] = {}

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call `fn` in a thread, as soon as the run has a free one."""
        run = self._whose()
        call = _Call(Future(), fn, args, kwargs)
        with self._guard:
            if self._running[run] >= THREADS_PER_RUN:
                self._waiting.setdefault(run, deque()).append(call)
                return call.future
            self._running[run] += 1
        super().submit(self._work, run, call)
        return call.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the threads end with the process, and a run must not end them for others."""

    def _work(self, run: Hashable, call: _Call | None) -> None:
        while call is not None:
            call()
            with self._guard:
                waiting = self._waiting.get(run)
                call = waiting.popleft() if waiting else None
                if call is None:
                    self._waiting.pop(run, None)
                    self._running[run] -= 1
                    if not self._running[run]:
                        del self._running[run]


class _Call:
    """A call and the future of its result."""

    def __init__(
        self, future: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.future = future
        self._fn, self._args, self._kwargs = fn, args, kwargs

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._fn(*self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001 - the caller that awaits gets it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
