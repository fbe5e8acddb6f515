"""Write the trace of a run, which the API shows: one record, and one step per update."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from orcheo_dispatch.worker.executor.payload import storable, storable_text
from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.orcheo.compat import RunnableConfigModel, normalize_json_mapping
from orcheo_dispatch.worker.orcheo.postgres import Clock
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox

_MAX_UNWRITTEN_STEPS = 100


class _Events(Unit):
    """The unwritten events of a trace, as rows in the form of Orcheo's history store."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.what = "step"
        self.record: dict[str, Any] | None = None
        self.steps: list[str] = []
        self.end: dict[str, Any] = {"status": None, "completed_at": None, "error": None}
        self.last_at = ""

    def rows(self) -> Rows:
        """Return the rows."""
        rows = Rows()
        if self.record is not None:
            end = self.end if self.end["status"] is not None else {}
            rows.add("records", json.dumps({**self.record, **end, "last_at": self.last_at}))
        elif self.steps:
            rows.add("changes", json.dumps({"execution_id": self.run_id, **self.end, "last_at": self.last_at}))
        for step in self.steps:
            rows.add("steps", step)
        return rows


class History:
    """Writes the trace of one run, shortly after its events and together with those of other runs.

    It survives a restart of Postgres. What still cannot be written is logged and dropped: a trace never costs a run its
    result. A step may be stored twice if Postgres crashes between its commit and its answer.
    """

    def __init__(self, outbox: Outbox, run: Run, clock: Clock) -> None:
        self._outbox = outbox
        self._run = run
        self._clock = clock
        self._run_id = json.dumps(run.run_id)
        self._events: _Events | None = None

    def start(self, workflow_id: str, config: RunnableConfigModel) -> None:
        """Open the record, or continue that of an earlier attempt at the run."""
        run = self._run
        events, at = self._growing("start")
        events.record = {
            "execution_id": run.run_id,
            "workflow_id": workflow_id,
            "workspace_id": run.workspace_id,
            "inputs": storable(run.inputs),
            "runnable_config": storable(config.to_json_config(run.run_id)),
            "tags": storable(config.tags),
            "callbacks": storable(config.callbacks),
            "metadata": storable(config.metadata),
            "run_name": storable(config.run_name),
            "status": "running",
            "started_at": at,
        }

    async def step(self, update: Mapping[str, Any]) -> None:
        """Append one update of the graph; wait if many are not written yet."""
        events = self._append("step", _storable_step(update))
        if len(events.steps) >= _MAX_UNWRITTEN_STEPS:
            self._outbox.hasten()
            await asyncio.shield(events.written)

    async def resumed(self, after_step: int, *, tasks: Sequence[str], because: str | None) -> None:
        """Append that the run continues after this step, with these tasks, and reopen the record.

        `because` says what ended the last attempt, as in the audit log of the run.
        """
        log.info("run_resumed", run_id=self._run.run_id, step=after_step, tasks=len(tasks), fence=self._run.fence)
        self._outbox.resumed(len(tasks))
        told = {"after_step": after_step, "tasks": [*tasks], "attempt": self._run.attempt, "claim": self._run.fence}
        text = f"Resumed after step {after_step} (attempt {self._run.attempt}): {because or 'executed again'}"
        await self.step({"resumed": {"message": text, "reason": because, **told}})
        if self._events is not None and not self._events.sealed:
            self._events.end = {"status": "running", "completed_at": None, "error": None}

    def completed(self, *, traced: str | None = None) -> asyncio.Future[Any]:
        """Close the record of a run that succeeded, unless its last step so far, `traced`, has closed it."""
        if traced == "completed" and self._events is None:
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        return self._close("completed", "completed", None, {"status": "completed"})

    def waiting(self, interrupts: int) -> asyncio.Future[Any]:
        """Append that the run waits for an answer; its record stays open."""
        events = self._append("waiting", {"waiting": {"interrupts": interrupts}})
        self._outbox.hasten()
        return events.written

    def failed(self, reason: str) -> asyncio.Future[Any]:
        """Close the record of a run that failed; `reason` is shown to users."""
        reason = storable_text(reason)
        return self._close("failed", "error", reason, {"status": "error", "error": reason})

    def cancelled(self, reason: str) -> asyncio.Future[Any]:
        """Close the record of a run that was cancelled or timed out, as the API does for its own runs."""
        reason = storable_text(reason)
        return self._close("cancelled", "cancelled", reason, {"status": "cancelled", "reason": reason})

    def checkpoint_lost(self, error: str) -> asyncio.Future[Any]:
        """Add, after the end, that the run's checkpoint could not be stored; `error` is the class of the error."""
        reason = f"The checkpoint of this run could not be stored: {error}."
        events = self._append("checkpoint", {"checkpoint": {"status": "error", "error": reason}})
        self._outbox.hasten()
        return events.written

    def abandon(self) -> None:
        """Write nothing more, and drop what has not been sent."""
        if self._events is not None:
            self._outbox.drop(self._events)

    def _close(self, what: str, status: str, error: str | None, step: Mapping[str, Any]) -> asyncio.Future[Any]:
        """Append the last step and end the record; it is written even if the returned future is not awaited."""
        events = self._append(what, step)
        events.end = {"status": status, "completed_at": events.last_at, "error": error}
        self._outbox.hasten()
        return events.written

    def _append(self, what: str, step: Any) -> _Events:
        events, at = self._growing(what)
        events.steps.append(f'{{"execution_id": {self._run_id}, "at": "{at}", "payload": {json.dumps(step)}}}')
        return events

    def _growing(self, what: str) -> tuple[_Events, str]:
        """Return the unsealed events, to which the event `what` is to be added, and its time."""
        if self._events is None or self._events.sealed:
            self._events = _Events(self._run.run_id)
            self._events.written.add_done_callback(partial(self._log_failure, self._events))
            self._outbox.add(self._events)
        self._events.what = what
        self._events.last_at = self._clock.now().isoformat()
        return self._events, self._events.last_at

    def _log_failure(self, events: _Events, written: asyncio.Future[Exception | None]) -> None:
        error = written.result()
        if error is not None:
            told = {"error": error.kind} if isinstance(error, NotWrittenError) else describe(error)
            log.warning("history_not_written", run_id=self._run.run_id, what=events.what, **told)


def _storable_step(update: Mapping[str, Any]) -> Any:
    """Return `update` in the form that the stock worker writes, without what cannot be stored."""
    try:
        # The form differs from that of outputs: "+00:00" instead of "Z", and the attributes of any object.
        update = normalize_json_mapping(update)
    except Exception as error:  # noqa: BLE001 - Code of the workflow's own types runs here.
        log.debug("history_step_simplified", **describe(error))
    return storable(update)
