"""Decide whether a suspect was innocent: its process must still work after its run has ended.

A run may leave something behind that harms others only later, such as a stopped clock. In a process of its own that
would not be noticed, so the event loop must answer once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.worker.isolation import Isolation
from orcheo_dispatch.worker.runners.runner import Runner
from orcheo_dispatch.worker.runners.watching import LAG_LIMIT_SECONDS


class Trying:
    """For the thread of the pool's event loop. `done` is called with each runner that is no longer needed."""

    def __init__(self, isolation: Isolation, *, done: Callable[[Runner], None]) -> None:
        self._isolation = isolation
        self._done = done
        self._tried: dict[Runner, tuple[Run, asyncio.TimerHandle]] = {}

    def __contains__(self, runner: Runner) -> bool:
        return runner in self._tried

    def begin(self, runner: Runner, run: Run) -> None:
        """Ping a dedicated runner whose run has ended by itself."""
        timer = asyncio.get_running_loop().call_later(LAG_LIMIT_SECONDS, self._end, runner, "left its process unusable")
        self._tried[runner] = run, timer
        runner.ping(time.monotonic())

    def answered(self, runner: Runner) -> None:
        """Acquit the run of this runner if the ping was sent after that run had ended; otherwise ping again."""
        if runner in self._tried and not runner.is_in_order:
            runner.ping(time.monotonic())
        else:
            self._end(runner, None)

    def gone(self, runner: Runner) -> None:
        """Convict the run of this runner, which ended before it answered."""
        self._end(runner, "left its process unusable")

    def _end(self, runner: Runner, reason: str | None) -> None:
        if runner not in self._tried:
            return
        run, timer = self._tried.pop(runner)
        timer.cancel()
        if reason is None:
            self._isolation.acquit(run)
        else:
            self._isolation.convict(run, reason)
            runner.kill(None)
        self._done(runner)
