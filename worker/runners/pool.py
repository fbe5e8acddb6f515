"""Manage the runners of a worker on an event loop in its own thread: give them runs, stop and replace them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.execution import Execution, How, Result, Stop
from orcheo_dispatch.worker.frames import Close, CronDone, Ended, Hasten, Pong, Resumed, Rows, Up
from orcheo_dispatch.worker.isolation import Isolation
from orcheo_dispatch.worker.runners.cron import CRON_SECONDS, CronRunner
from orcheo_dispatch.worker.runners.orders import BookKeeper, Orders
from orcheo_dispatch.worker.runners.placement import Waiting, assign, plan
from orcheo_dispatch.worker.runners.runner import Runner
from orcheo_dispatch.worker.runners.starting import ATTACH_SECONDS, FIRST_SECONDS, Starter
from orcheo_dispatch.worker.runners.trying import Trying
from orcheo_dispatch.worker.runners.verdicts import CancelledTogether, holder_of, is_excused, judge, result_of
from orcheo_dispatch.worker.runners.watching import TICK_SECONDS, Watching

_CLOSE_SECONDS = 6.0


class RunnerPool:
    """Execute runs in runners. The methods above the line "the loop's thread" may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics,
        isolation: Isolation,
        *,
        make_books: Callable[[Callable[[], int]], BookKeeper],
        told_of: Callable[[Execution, Stop], tuple[str | None, str]],
    ) -> None:
        """`told_of` returns the status and the reason that an executor gets when a run is stopped."""
        self._settings = settings
        self._metrics = metrics
        self._isolation = isolation
        self._make_books = make_books
        self.orders = Orders(told_of=told_of, end=self._end, spawn=self._spawn)
        self._processes = min(settings.shared_processes, settings.max_processes - 1)
        self._watching = Watching(settings, metrics, isolation)
        self._cancelled = CancelledTogether(isolation, end=self._end)
        self._trying = Trying(isolation, done=self._close_if_empty)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="runners", daemon=True)
        self.starter = Starter(max_output=settings.max_output, on_frame=self._take, on_gone=self._gone)
        self._cron = CronRunner(self.starter)
        self._runners: set[Runner] = set()
        self._waiting = Waiting()
        self._where: dict[int, Runner] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.has_cron = False
        """Whether the executor can dispatch cron triggers; known once the pool has started."""
        self.turned_at = time.monotonic()
        """`time.monotonic()` of the last time that this pool's loop checked its runners."""

    def start(self) -> None:
        """Open the executor in a first runner. Raises `DispatchError` or a subclass of it, or `TimeoutError`."""
        self._thread.start()
        self._call(self._open(), 2 * FIRST_SECONDS + ATTACH_SECONDS)

    def execute(self, executions: Sequence[Execution]) -> None:
        """Execute these runs."""
        self._loop.call_soon_threadsafe(self._arrive, executions)

    def stop_run(self, execution: Execution) -> None:
        """Cancel a run whose stop was requested."""
        self._loop.call_soon_threadsafe(self._stop, execution)

    def end_run(self, execution: Execution) -> None:
        """End a run that ignored its stop."""
        self._loop.call_soon_threadsafe(self._end_ignoring, execution)

    def dispatch_cron(self) -> CronReport:
        """Have the executor dispatch due cron triggers, in a runner of its own; wait for the result."""
        try:
            return self._call(self._cron.dispatch(), CRON_SECONDS + 2 * ATTACH_SECONDS)
        except (concurrent.futures.CancelledError, TimeoutError) as error:
            return CronReport("failed", reason=str(error) or type(error).__name__)

    def close(self) -> None:
        """End all runners. Call it when no runs remain."""
        self._call(self._close(), 2 * _CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    # --- from here on: the loop's thread

    def _call[T](self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            attached = await self.starter.first(self._runners.add)
        except BaseException:
            # This process ends with the error: it needs no runner in place of the one that could not open the executor.
            self._closing = True
            raise
        self.has_cron = attached.cron
        if attached.books:
            books = self._make_books(self._where.__len__)
            await books.open()
            self.orders.books = books
        self._spawn(self._tick())
        self._place()

    # --- starting and ending runs

    def _arrive(self, executions: Sequence[Execution]) -> None:
        for execution in executions:
            if execution.stop_reason is not None:
                self._end_stopped(execution)
            else:
                self._waiting.add(execution, dedicated=self._isolation.is_isolated(execution.run))
        self._place()

    def _place(self) -> None:
        """Give waiting runs to free runners, and start missing runners."""
        placed = True
        while placed and len(self._waiting):
            placed = False
            for workspace, dedicated in self._waiting.turns():
                runner = assign(self._runners, workspace, dedicated=dedicated, processes=self._processes)
                if runner is not None:
                    self._give(runner, self._waiting.take(workspace, dedicated=dedicated))
                    placed = True
        if not self._closing:
            self._make_room()

    def _make_room(self) -> None:
        """Start missing spares; at the maximum number of runners, have some end."""
        starts, leaving = plan(
            self._runners,
            self._waiting,
            starting=self.starter.under_way,
            processes=self._processes,
            most=self._settings.max_processes,
        )
        if self.starter.problem is None:
            for _ in range(starts):
                self._spawn(self._start_spare())
        for runner in leaving:
            runner.draining = True
            self._close_if_empty(runner)

    async def _start_spare(self) -> None:
        if await self.starter.spare(self._runners.add):
            self._place()

    def _give(self, runner: Runner, execution: Execution) -> None:
        runner.executions[execution.key] = execution
        runner.taken += 1
        runner.used_at = time.monotonic()
        runner.remember(execution.key, execution.run)
        self._where[execution.key] = runner
        if runner.taken >= self._settings.max_runs_per_process:
            runner.draining = True
        self.orders.give(runner, execution)

    def _end(self, runner: Runner, execution: Execution, result: Result) -> None:
        runner.executions.pop(execution.key, None)
        self._where.pop(execution.key, None)
        if runner.dedicated and result.stop is None:
            self._trying.begin(runner, execution.run)
        execution.end(result)
        self._close_if_empty(runner)
        self._place()

    def _end_stopped(self, execution: Execution, *, ignored: bool = False) -> None:
        self._where.pop(execution.key, None)
        execution.end(Result(How.STOPPED, stop=execution.stop_reason, ignored_stop=ignored))

    def _stop(self, execution: Execution) -> None:
        runner = self._where.get(execution.key)
        if runner is None:
            if self._waiting.remove(execution):
                self._end_stopped(execution)
            return
        self.orders.stop(runner, execution)

    def _end_ignoring(self, execution: Execution) -> None:
        """End a run that ignored its stop; kill its runner if no other run in it makes progress, else let it drain."""
        runner = self._where.get(execution.key)
        if runner is None or execution.key not in runner.executions:
            return
        others = runner.executions.keys() - runner.ignored - {execution.key}
        holder = holder_of(runner) if runner.held else execution
        if holder is execution:
            self._isolation.convict(execution.run, "ignored a stop")
        if not others or runner.held:
            # While its loop is blocked, no other run in it makes progress.
            runner.kill("Runner was ended because a run in it did not stop", culprit=holder)
            return
        runner.ignored.add(execution.key)
        runner.draining = True
        self._end_stopped(execution, ignored=True)

    def _close_if_empty(self, runner: Runner) -> None:
        if runner in self._trying:
            return
        if not runner.executions and (runner.draining or (runner.dedicated and runner.taken)):
            runner.draining = True
            runner.send(Close())
            self._loop.call_later(_CLOSE_SECONDS, runner.kill, None)
        elif runner.executions and runner.executions.keys() <= runner.ignored:
            runner.kill("Runner was ended because a run in it did not stop")

    # --- frames from runners

    def _take(self, runner: Runner, frame: Up) -> None:
        match frame:
            case Ended():
                execution = runner.executions.get(frame.key)
                if execution is not None:
                    self._take_end(runner, execution, frame)
            case Rows():
                self.orders.write(runner, frame, on_refused=self._metrics.checkpoint_refused)
            case Hasten():
                self.orders.hasten()
            case Resumed():
                self._metrics.run_resumed(frame.tasks)
            case Pong():
                self._trying.answered(runner)
                self._watching.answered(runner)
                if len(self._waiting):
                    self._place()
            case CronDone():
                self._cron.take(frame)

    def _take_end(self, runner: Runner, execution: Execution, frame: Ended) -> None:
        if frame.how == "cancelled_inside" and execution.stop_reason is None:
            self._cancelled.add(runner, execution)
            return
        self._end(runner, execution, result_of(runner, execution, frame, max_output=self._settings.max_output))

    def _gone(self, runner: Runner) -> None:
        """Settle the runs of a runner that has ended."""
        self._runners.discard(runner)
        self._cron.gone(runner)
        if not self._closing:
            self._trying.gone(runner)
        ended = [each for each in runner.executions.values() if each.result is None]
        runner.executions.clear()
        if ended:
            self._watching.lost(runner, len(ended))
        innocent = self._closing and runner.killed_for is None
        for execution, result in judge(runner, ended, self._isolation, innocent=innocent):
            self._where.pop(execution.key, None)
            guilty = result.how is How.CRASHED or not is_excused(runner, execution)
            if execution.stop_reason is not None and guilty:
                self._end_stopped(execution, ignored=True)
            else:
                execution.end(result)
        if not self._closing:
            self._place()

    # --- monitoring and closing

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.turned_at = time.monotonic()
            try:
                lags = [self._watching.look(runner) for runner in list(self._runners)]
                self._metrics.loop_lag(max(lags, default=0.0))
                if self.starter.problem is not None and not self.starter.under_way:
                    self._spawn(self._start_spare())
                self._place()
            except Exception as error:  # noqa: BLE001 - a fault of ours with one runner must not end the watch
                log.error("runner_watch_failed", **describe(error))

    async def _close(self) -> None:
        self._closing = True
        for runner in (everyone := list(self._runners)):
            runner.draining = True
            runner.send(Close())
        self._cron.close()
        deadline = self._loop.time() + _CLOSE_SECONDS
        while (self._runners or self._cron.exists) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for runner in everyone:
            runner.kill(None)
        self._cron.close(at_once=True)
        for task in list(self._tasks):
            task.cancel()
        if self.orders.books is not None:
            await self.orders.books.close()
        await self.starter.close()
