"""The runners of a worker: started, given runs, watched, stopped and replaced, on an event loop of their own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from shared.cron import CronReport
from shared.errors import DatabaseError, DispatchError, SchemaError, SettingsError
from shared.ledger import Claim
from shared.logs import describe, log
from shared.metrics import WorkerMetrics
from shared.settings import Settings
from worker.books.rows import Rows as BookRows
from worker.execution import Execution, How, Result, Stop
from worker.frames import Attached, Close, Cron, CronDone, Ended, Hasten, NotAttached, Pong, Rows, Start, Up, Written
from worker.frames import Stop as StopFrame
from worker.isolation import Isolation
from worker.runners.fork_server import ForkServer
from worker.runners.memory import memory_of
from worker.runners.placement import Waiting, choose, idle_of_others, longest_served
from worker.runners.runner import Runner

LAG_LIMIT_SECONDS = 2.0
_TICK_SECONDS = 0.5
_FIRST_SECONDS = 300.0
"""How long the first runner may take: it imports the executor, makes tables and tries a run."""
_ATTACH_SECONDS = 60.0
_CRON_SECONDS = 300.0
_CLOSE_SECONDS = 6.0
_FAILING_SECONDS = 60.0
"""How long no runner can be started until the worker gives up."""
_RETRY_SECONDS = 0.5
_FRAME_MARGIN = 1 << 20
_ROWS_FRAME_BYTES = 1 << 26
_CANCELLED_TOGETHER_SECONDS = 0.1
_ERRORS: dict[str, type[DispatchError]] = {
    each.__name__: each for each in (SettingsError, SchemaError, DatabaseError, DispatchError)
}


class BookKeeper(Protocol):
    """What reads workflows and writes rows for the executor; `worker.books.books.Books`."""

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Write what is left, and disconnect."""

    @property
    def makes_progress(self) -> bool:
        """Whether statements are begun while rows wait."""

    async def provide(self, run: Any, known_at: str | None) -> Any:
        """Return what an executor needs of Orcheo's tables to execute a run."""

    def write(self, claim: Claim, rows: BookRows, *, hasten: bool) -> asyncio.Future[str | None]:
        """Write rows of a run."""

    def hasten(self) -> None:
        """Write soon what was given before."""

    def abandon(self, run: Claim) -> None:
        """Write nothing more of a run."""


class RunnerPool:
    """Executes runs in runners. `start`, `execute`, `dispatch_cron` and `close` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics,
        isolation: Isolation,
        *,
        make_books: Callable[[Callable[[], int]], BookKeeper],
        told_of: Callable[[Execution, Stop], tuple[str | None, str]],
    ) -> None:
        """`told_of` returns what an executor is told when a run is stopped."""
        self._settings = settings
        self._metrics = metrics
        self._isolation = isolation
        self._make_books = make_books
        self._told_of = told_of
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="runners", daemon=True)
        self._server = ForkServer()
        self._runners: set[Runner] = set()
        self._starting = 0
        self._numbers = 0
        self._waiting = Waiting()
        self._where: dict[int, Runner] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._books: BookKeeper | None = None
        self._found: bytes | None = None
        self._cron: Runner | None = None
        self._cron_calls = 0
        self._cron_answers: dict[int, asyncio.Future[CronReport]] = {}
        self._closing = False
        self._failing_since: float | None = None
        self._last_error = ""
        self.has_cron = False
        """Whether the executor can dispatch cron triggers; known when the pool has started."""
        self.turned_at = time.monotonic()
        """`time.monotonic()` of the last time that the loop of this pool looked at its runners."""

    # --- from other threads

    def start(self) -> None:
        """Open the executor in a first runner. Raises `DispatchError`, or what is below it."""
        self._thread.start()
        self._call(self._open(), _FIRST_SECONDS + _ATTACH_SECONDS)

    def execute(self, executions: Sequence[Execution]) -> None:
        """Execute these runs."""
        self._loop.call_soon_threadsafe(self._arrive, executions)

    def stop_run(self, execution: Execution) -> None:
        """Cancel a run that was told to stop."""
        self._loop.call_soon_threadsafe(self._stop, execution)

    def end_run(self, execution: Execution) -> None:
        """End a run that went on after it was told to stop."""
        self._loop.call_soon_threadsafe(self._end_ignoring, execution)

    def dispatch_cron(self) -> CronReport:
        """Have the executor dispatch due cron triggers, in a runner of its own; wait for what came of it."""
        try:
            return self._call(self._dispatch_cron(), _CRON_SECONDS + _ATTACH_SECONDS)
        except (DispatchError, concurrent.futures.CancelledError, TimeoutError) as error:
            return CronReport("failed", reason=str(error) or type(error).__name__)

    def close(self) -> None:
        """End all runners; there are no runs left."""
        self._call(self._close(), 2 * _CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    @property
    def problem(self) -> str | None:
        """Why no run can be executed, in one line; None where they can."""
        since = self._failing_since
        return None if since is None else f"no runner can be started: {self._last_error}"

    @property
    def is_hopeless(self) -> bool:
        """Whether no runner could be started for so long that this process should be replaced."""
        return self._failing_since is not None and time.monotonic() - self._failing_since > _FAILING_SECONDS

    @property
    def books_get_on(self) -> bool:
        """Whether rows of runs are written while some wait; whether Postgres takes them is another matter."""
        return self._books is None or self._books.makes_progress

    # --- the loop's thread from here on

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call[T](self, coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(seconds)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        attached = await self._start_first()
        if attached.threads > 1 and self._server.shares:
            log.warning("runners_not_forked", reason="threads", threads=attached.threads)
            self._server.stop_sharing(attached.server)
            attached = await self._start_first()
        self._found, self.has_cron = attached.found, attached.cron
        if attached.books:
            self._books = self._make_books(self._where.__len__)
            await self._books.open()
        self._spawn(self._tick())
        self._place()

    async def _start_first(self) -> Attached:
        runner = await self._new_runner(cron=False, seconds=_FIRST_SECONDS)
        attached = runner.attached.result()
        if isinstance(attached, NotAttached):
            raise _ERRORS.get(attached.error, DispatchError)(attached.reason)
        return attached

    async def _new_runner(self, *, cron: bool, seconds: float = _ATTACH_SECONDS) -> Runner:
        """Start a runner and wait until its executor is open, or cannot be opened. Raises `DispatchError`."""
        self._numbers += 1
        self._starting += 1
        try:
            started = await self._server.start(f"runner-{self._numbers}")
            runner = Runner(
                self._numbers,
                started,
                join=self._server.join,
                on_frame=self._take,
                on_gone=self._gone,
                limit=max(self._settings.max_output + _FRAME_MARGIN, _ROWS_FRAME_BYTES),
            )
            await runner.connect()
        except (OSError, EOFError) as error:
            raise DispatchError(f"the fork server ended: {type(error).__name__}") from error
        finally:
            self._starting -= 1
        # Counted from here on, whatever becomes of it: nothing was awaited in between.
        if not cron:
            self._runners.add(runner)
        runner.attach(self._found, cron=cron)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(runner.attached)
        except TimeoutError:
            runner.kill(f"the executor was not open within {seconds:g} s")
            await runner.attached
        runner.base_memory = memory_of(runner.pid)
        return runner

    # --- runs come and go

    def _arrive(self, executions: Sequence[Execution]) -> None:
        for execution in executions:
            if execution.stop_reason is not None:
                self._end_stopped(execution)
            else:
                self._waiting.add(execution, dedicated=self._isolation.is_isolated(execution.run))
        self._place()

    def _place(self) -> None:
        """Give runs that wait to runners, as far as there are any, and start those that are missing."""
        placed = True
        while placed and len(self._waiting):
            placed = False
            for workspace, dedicated in self._waiting.turns():
                runner = self._runner_for(workspace, dedicated=dedicated)
                if runner is not None:
                    self._give(runner, self._waiting.take(workspace, dedicated=dedicated))
                    placed = True
        if not self._closing:
            self._make_room()

    def _runner_for(self, workspace: str, *, dedicated: bool) -> Runner | None:
        spare = next((each for each in self._runners if each.workspace is None and each.is_free), None)
        if not dedicated:
            shared = choose(self._runners, workspace)
            if shared is not None and (not shared.executions or spare is None or self._has_enough(workspace)):
                return shared
        if spare is not None:
            spare.assign(workspace, dedicated=dedicated)
        return spare

    def _has_enough(self, workspace: str) -> bool:
        own = sum(each.workspace == workspace and not each.dedicated for each in self._runners)
        return own >= self._settings.processes

    def _make_room(self) -> None:
        """Start the spares that are missing; have others end where there are as many runners as there may be."""
        missing = 0
        without: str | None = None
        for workspace, dedicated in self._waiting.turns():
            missing += self._waiting.count(workspace, dedicated=True) if dedicated else 1
            without = without or workspace
        spares = self._starting + sum(each.workspace is None and not each.draining for each in self._runners)
        wanted = missing + max(1, self._settings.processes - len(self._runners)) - spares
        room = self._settings.max_processes - self._starting - len(self._runners)
        if self._failing_since is None:
            for _ in range(min(wanted, room)):
                self._spawn(self._start_spare())
        ending = sum(each.draining for each in self._runners)
        for _ in range(missing - spares - max(0, room) - ending):
            leaving = idle_of_others(self._runners, without) or longest_served(self._runners, without)
            if leaving is None:
                break
            leaving.draining = True
            self._close_if_empty(leaving)

    async def _start_spare(self) -> None:
        try:
            runner = await self._new_runner(cron=False)
            attached = runner.attached.result()
            if isinstance(attached, NotAttached):
                runner.draining = True
                raise _ERRORS.get(attached.error, DispatchError)(attached.reason)
        except DispatchError as error:
            if self._failing_since is None and not self._closing:
                self._failing_since = time.monotonic()
                log.error("runner_not_started", reason=str(error))
            self._last_error = str(error)
            return
        if self._failing_since is not None:
            self._failing_since = None
            log.info("runner_started_again")
        self._place()

    def _give(self, runner: Runner, execution: Execution) -> None:
        runner.executions[execution.key] = execution
        runner.taken += 1
        runner.used_at = time.monotonic()
        self._where[execution.key] = runner
        if runner.taken >= self._settings.max_runs_per_process:
            runner.draining = True
        if self._books is None:
            self._send_start(runner, execution, None)
        else:
            self._spawn(self._provide(runner, execution))

    async def _provide(self, runner: Runner, execution: Execution) -> None:
        assert self._books is not None
        version = execution.run.workflow_version_id
        try:
            provided = await self._books.provide(execution.run, runner.knows(version))
        except Exception as error:  # noqa: BLE001 - this run fails of it, and no other
            told = describe(error)
            kind = told["error"]
            self._end(runner, execution, Result(How.FAILED, error=kind, kind=kind, at=told.get("at")))
            return
        if execution.key not in runner.executions:
            # The runner ended meanwhile, and the run with it.
            return
        if execution.stop_reason is not None:
            self._end(runner, execution, Result(How.STOPPED, stop=execution.stop_reason))
        elif provided.rejected is not None:
            self._end(runner, execution, Result(How.REJECTED, error=provided.rejected))
        else:
            if provided.updated_at is not None:
                runner.learns(version, provided.updated_at)
            self._send_start(runner, execution, provided.encode())

    def _send_start(self, runner: Runner, execution: Execution, provided: bytes | None) -> None:
        run = execution.run
        fields = {
            "run_id": run.run_id,
            "fence": run.fence,
            "attempt": run.attempt,
            "workflow_id": run.workflow_id,
            "workflow_version_id": run.workflow_version_id,
            "workspace_id": run.workspace_id,
            "triggered_by": run.triggered_by,
            "pending_for": run.pending_for,
            "queued_for": run.queued_for,
        }
        payload = json.dumps([run.inputs, run.runnable_config]).encode()
        runner.send(Start(execution.key, fields, payload, provided))
        execution.started = True

    def _end(self, runner: Runner, execution: Execution, result: Result) -> None:
        runner.executions.pop(execution.key, None)
        self._where.pop(execution.key, None)
        if runner.dedicated and result.stop is None:
            self._isolation.acquit(execution.run)
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
        assert execution.stop_reason is not None
        if self._books is not None and execution.stop_reason in (Stop.LOST, Stop.LEASE_OVER):
            # It may be another worker's by now.
            self._books.abandon(execution.claim)
        if execution.started:
            runner.send(StopFrame(execution.key, *self._told_of(execution, execution.stop_reason)))

    def _end_ignoring(self, execution: Execution) -> None:
        """End a run that was told to stop and went on: with its runner, where that costs no other run anything."""
        runner = self._where.get(execution.key)
        if runner is None or execution.key not in runner.executions:
            return
        others = runner.executions.keys() - runner.ignored - {execution.key}
        holder = self._holder(runner) if runner.held else None
        if holder is None or holder is execution:
            self._isolation.convict(execution.run, "ignored a stop")
        if not others or runner.held:
            # While its loop is held, no run in it gets anything done.
            runner.kill("Runner was ended because a run in it did not stop", culprit=holder or execution)
            return
        runner.ignored.add(execution.key)
        runner.draining = True
        self._end_stopped(execution, ignored=True)

    def _close_if_empty(self, runner: Runner) -> None:
        if not runner.executions and (runner.draining or (runner.dedicated and runner.taken)):
            runner.draining = True
            runner.send(Close())
            self._loop.call_later(_CLOSE_SECONDS, runner.kill, None)
        elif runner.executions and runner.executions.keys() <= runner.ignored:
            runner.kill("Runner was ended because a run in it did not stop")

    # --- what runners say

    def _take(self, runner: Runner, frame: Up) -> None:
        match frame:
            case Ended():
                execution = runner.executions.get(frame.key)
                if execution is not None:
                    self._take_end(runner, execution, frame)
            case Rows():
                self._take_rows(runner, frame)
            case Hasten():
                if self._books is not None:
                    self._books.hasten()
            case Pong():
                self._answered(runner)
            case CronDone():
                answer = self._cron_answers.pop(frame.number, None)
                if answer is not None and not answer.done():
                    outcome: Any = frame.outcome
                    answer.set_result(CronReport(outcome, frame.runs, frame.skipped, frame.reason))

    def _take_end(self, runner: Runner, execution: Execution, frame: Ended) -> None:
        stop = execution.stop_reason
        if frame.how == "cancelled_inside" and stop is None:
            runner.cancelled_inside.append(execution)
            if len(runner.cancelled_inside) == 1:
                self._loop.call_later(_CANCELLED_TOGETHER_SECONDS, self._end_cancelled, runner)
            return
        try:
            how = How(frame.how)
        except ValueError:
            how = How.STOPPED if stop is not None else How.FAILED
        output = frame.output.decode(errors="replace") if frame.output is not None else None
        if output is not None and len(frame.output or b"") > self._settings.max_output:
            how, output = How.FAILED, None
        result = Result(
            how, output=output, error=frame.error, kind=frame.kind, at=frame.at, fault=frame.fault, stop=stop
        )
        self._end(runner, execution, result)

    def _end_cancelled(self, runner: Runner) -> None:
        """End runs whose tasks were cancelled by code in their runner: one by itself, several by one of them."""
        executions, runner.cancelled_inside = runner.cancelled_inside, []
        alone = len(executions) == 1
        for execution in executions:
            if execution.result is None:
                if not alone:
                    self._isolation.suspect(execution.run)
                result = (
                    Result(How.FAILED, error="the workflow cancelled itself", kind="CancelledError")
                    if alone
                    else Result(How.SUSPECTED, error="Run was cancelled by the code of a run in its runner.")
                )
                self._end(runner, execution, result)
        if not alone:
            runner.draining = True
            self._close_if_empty(runner)

    def _take_rows(self, runner: Runner, frame: Rows) -> None:
        """Write rows of a run that this runner executes; of any other run it may write nothing."""
        claim = Claim(frame.run_id, frame.fence)
        execution = next((each for each in runner.executions.values() if each.claim == claim), None)
        if self._books is None or execution is None or execution.stop_reason in (Stop.LOST, Stop.LEASE_OVER):
            runner.send(Written(frame.unit, "NotThisRunnersRun"))
            return
        written = self._books.write(claim, BookRows(frame.texts, frame.contents), hasten=frame.hasten)
        written.add_done_callback(lambda done: runner.send(Written(frame.unit, done.result())))

    def _gone(self, runner: Runner) -> None:
        """Settle what was in a runner that has ended."""
        self._runners.discard(runner)
        if runner is self._cron:
            self._cron = None
            for answer in self._cron_answers.values():
                if not answer.done():
                    answer.set_result(CronReport("failed", reason=runner.exit_text()))
            self._cron_answers.clear()
        ended = [each for each in runner.executions.values() if each.result is None]
        runner.executions.clear()
        innocent = runner.lost_its_server or (self._closing and runner.killed_for is None)
        why = f"{runner.exit_text()} in the middle of the run."
        if ended:
            log.warning("runner_ended", runner=runner.number, reason=runner.exit_text(), runs=len(ended))
        for execution in ended:
            self._where.pop(execution.key, None)
            if execution.stop_reason is not None:
                self._end_stopped(execution, ignored=True)
            elif innocent or (runner.culprit is not None and runner.culprit is not execution):
                execution.end(Result(How.LOST, error=why, kind="RunnerLost"))
            elif len(ended) == 1 or runner.culprit is execution:
                self._isolation.convict(execution.run, "ended its runner")
                execution.end(Result(How.CRASHED, error=why, kind="RunnerEnded"))
            else:
                self._isolation.suspect(execution.run)
                why_all = f"{why} {len(ended)} runs were in it."
                execution.end(Result(How.SUSPECTED, error=why_all, kind="RunnerEnded"))
        if not self._closing:
            self._place()

    # --- looking after runners

    async def _tick(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self.turned_at = time.monotonic()
            try:
                lag = max((self._look(runner, now) for runner in list(self._runners)), default=0.0)
                self._metrics.loop_lag(lag)
                if self._failing_since is not None and now - last > _RETRY_SECONDS:
                    last = now
                    self._spawn(self._start_spare())
                self._place()
            except Exception as error:  # noqa: BLE001 - a fault of ours with one runner must not end the watch
                log.error("runners_not_watched", **describe(error))

    def _look(self, runner: Runner, now: float) -> float:
        if not runner.executions:
            return 0.0
        self._bound_memory(runner)
        if now - runner.started_at > self._settings.max_process_age:
            runner.draining = True
        lag = runner.ping(now)
        if lag > LAG_LIMIT_SECONDS and not runner.held:
            runner.held = True
            self._metrics.loop_blocked()
            self._say_held(runner, lag)
        return lag

    def _answered(self, runner: Runner) -> None:
        if runner.held:
            runner.held = False
            log.info("loop_unblocked", runner=runner.number)
            self._place()

    def _say_held(self, runner: Runner, lag: float) -> None:
        held, executions, holder = runner.held_by, list(runner.executions.values()), self._holder(runner)
        fields: dict[str, Any] = {"runner": runner.number, "seconds": round(lag, 1)}
        if held is not None:
            fields |= {"at": held.at, "node": held.node, "node_type": held.node_type}
        fields = {name: value for name, value in fields.items() if value is not None}
        if holder is None:
            for each in executions:
                self._isolation.suspect(each.run)
            log.warning("loop_blocked", **fields, runs=",".join(each.claim.run_id for each in executions))
            return
        run = holder.run
        log.warning("loop_blocked", run_id=run.run_id, workflow_id=run.workflow_id, fence=run.fence, **fields)
        self._isolation.convict(run, "held its event loop")

    def _holder(self, runner: Runner) -> Execution | None:
        """Return the run that holds the loop of a runner, where it is known."""
        held, executions = runner.held_by, runner.executions
        named = executions.get(held.key) if held is not None and held.key is not None else None
        return next(iter(executions.values())) if named is None and len(executions) == 1 else named

    def _bound_memory(self, runner: Runner) -> None:
        limit = self._settings.max_memory << 20
        if not limit or not runner.base_memory:
            return
        grown = memory_of(runner.pid) - runner.base_memory
        if grown > limit:
            runner.kill(f"Runner was ended because it took more than ORCHEO_WORKER_MAX_MEMORY={limit >> 20} MiB")
        elif grown > limit // 2:
            runner.draining = True

    # --- cron, and the end

    async def _dispatch_cron(self) -> CronReport:
        if self._cron is None:
            runner = await self._new_runner(cron=True)
            attached = runner.attached.result()
            if isinstance(attached, NotAttached):
                raise _ERRORS.get(attached.error, DispatchError)(attached.reason)
            self._cron = runner
        self._cron_calls += 1
        number = self._cron_calls
        answer = self._cron_answers[number] = self._loop.create_future()
        self._cron.send(Cron(number))
        try:
            async with asyncio.timeout(_CRON_SECONDS):
                report: CronReport = await answer
                return report
        except TimeoutError:
            self._cron_answers.pop(number, None)
            if self._cron is not None:
                self._cron.kill("Runner was ended because the dispatch of cron triggers took too long")
            return CronReport("failed", reason=f"not done within {_CRON_SECONDS:g} s")

    async def _close(self) -> None:
        self._closing = True
        everyone = {*self._runners, *([self._cron] if self._cron is not None else [])}
        for runner in everyone:
            runner.draining = True
            runner.send(Close())
        deadline = self._loop.time() + _CLOSE_SECONDS
        while (self._runners or self._cron is not None) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        for runner in everyone:
            runner.kill(None)
        for task in list(self._tasks):
            task.cancel()
        if self._books is not None:
            await self._books.close()
