"""Send orders about runs to runners, and read and write rows for runs in progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from traceback import walk_tb
from typing import Any, Protocol

import psycopg

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.logs.lines import describe
from orcheo_dispatch.worker.books.rows import Rows as BookRows
from orcheo_dispatch.worker.books.units import StaleFenceError
from orcheo_dispatch.worker.books.workflows import Provided
from orcheo_dispatch.worker.execution import Execution, How, Result, Stop
from orcheo_dispatch.worker.frames import Fault, Rows, Start, Written
from orcheo_dispatch.worker.frames import Stop as StopFrame
from orcheo_dispatch.worker.runners.runner import Runner


class BookKeeper(Protocol):
    """Reads and writes Orcheo's tables. Only for the pool's event loop, except `makes_progress`."""

    @property
    def makes_progress(self) -> bool:
        """Whether statements begin while rows wait. May be read from any thread."""

    async def open(self) -> None:
        """Connect. Raises `DatabaseError`."""

    async def close(self) -> None:
        """Write remaining rows and disconnect."""

    async def provide(self, run: Run, known_at: str | None) -> Provided:
        """Return what an executor needs from Orcheo's tables to execute a run."""

    def resumes(self, run: Run) -> bool:
        """Return whether a run continues after the steps that an earlier attempt stored."""

    def write(self, run: Claim, rows: BookRows, *, hasten: bool, resumes: bool) -> asyncio.Future[str | None]:
        """Write rows of a run; the result is None, or the class of the error with which they were refused."""

    def hasten(self) -> None:
        """Write all rows given so far as soon as possible."""

    def abandon(self, run: Claim) -> None:
        """Write no more rows of a run."""


_FIELDS = (
    "run_id",
    "fence",
    "attempt",
    "workflow_id",
    "workflow_version_id",
    "workspace_id",
    "triggered_by",
    "pending_for",
    "queued_for",
)
_WORKER = "orcheo_dispatch.worker."
_LOST = (Stop.LOST, Stop.LEASE_OVER)
"""Stops of runs that another worker may hold by now."""


class Orders:
    """Send orders to runners. For the thread of the pool's event loop.

    `told_of` returns the status and the reason that an executor gets when a run is stopped; `end` ends a run that is in
    a runner.
    """

    def __init__(
        self,
        *,
        told_of: Callable[[Execution, Stop], tuple[str | None, str]],
        end: Callable[[Runner, Execution, Result], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._told_of = told_of
        self._end = end
        self._spawn = spawn
        self.books: BookKeeper | None = None
        """Set when it has been opened; None if the executor does not want one."""

    @property
    def makes_progress(self) -> bool:
        """Whether writes begin while rows wait, regardless of whether Postgres accepts them. For any thread."""
        return self.books is None or self.books.makes_progress

    def give(self, runner: Runner, execution: Execution) -> None:
        """Have a runner execute a run."""
        if self.books is None:
            _send(runner, execution, None)
        else:
            self._spawn(self._provide(self.books, runner, execution))

    def stop(self, runner: Runner, execution: Execution) -> None:
        """Have a runner stop a run; a run that has not started there never starts."""
        assert execution.stop_reason is not None
        if self.books is not None and execution.stop_reason in _LOST:
            self.books.abandon(execution.claim)
        if execution.started:
            runner.send(StopFrame(execution.key, *self._told_of(execution, execution.stop_reason)))

    def write(self, runner: Runner, frame: Rows, *, on_refused: Callable[[], None]) -> None:
        """Write rows of a run that this runner executes and that has not ended; refuse all other rows.

        `on_refused` is called if a checkpoint of a run that this worker holds cannot be stored.
        """
        claim = Claim(frame.run_id, frame.fence)
        execution = next((each for each in runner.executions.values() if each.claim == claim), None)
        if self.books is None or execution is None or execution.stop_reason in _LOST or execution.result is not None:
            runner.send(Written(frame.unit, "NotThisRunnersRun"))
            return
        if execution.trace is not None:
            execution.trace.stepped(frame.texts.get("steps", ()))
        written = self.books.write(
            claim,
            BookRows(frame.texts, frame.contents),
            hasten=frame.hasten,
            resumes=self.books.resumes(execution.run),
        )

        def answer(done: asyncio.Future[str | None]) -> None:
            error = done.result()
            if error not in (None, StaleFenceError.__name__) and "checkpoints" in frame.texts:
                on_refused()
            runner.send(Written(frame.unit, error))

        written.add_done_callback(answer)

    def hasten(self) -> None:
        """Write all rows given so far as soon as possible."""
        if self.books is not None:
            self.books.hasten()

    async def _provide(self, books: BookKeeper, runner: Runner, execution: Execution) -> None:
        try:
            provided = await books.provide(execution.run, runner.versions.known_at(execution.run.workflow_version_id))
        except Exception as error:  # noqa: BLE001 - this run fails of it, and no other
            kind, at = describe(error)["error"], _raised_at(error)
            fault = Fault(kind, at, isinstance(error, psycopg.Error))
            self._end(runner, execution, Result(How.FAILED, error=kind, kind=kind, at=at, fault=fault))
            return
        if execution.key not in runner.executions:
            # The runner ended in the meantime, and the run with it.
            return
        if execution.stop_reason is not None:
            self._end(runner, execution, Result(How.STOPPED, stop=execution.stop_reason))
        elif provided.rejected is not None:
            self._end(runner, execution, Result(How.REJECTED, error=provided.rejected))
        else:
            runner.versions.give(provided)
            _send(runner, execution, provided.encode())


def _raised_at(error: Exception) -> str:
    """Return file, line and function of the innermost frame of the worker's own code."""
    ours = [each for each in walk_tb(error.__traceback__) if each[0].f_globals["__name__"].startswith(_WORKER)]
    frame, line = ours[-1]
    return f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"


def _send(runner: Runner, execution: Execution, provided: bytes | None) -> None:
    run = execution.run
    payload = json.dumps([run.inputs, run.runnable_config]).encode()
    runner.send(Start(execution.key, {name: getattr(run, name) for name in _FIELDS}, payload, provided))
    execution.started = True
