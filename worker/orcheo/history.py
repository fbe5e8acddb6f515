"""The trace of a run, which the API shows: one record and a step for each update, in Orcheo's history store."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from orcheo.runtime.runnable_config import RunnableConfigModel
from orcheo_backend.app.history import RunHistoryStore
from orcheo_backend.app.history.serialization import normalize_json_mapping

from shared.logs import describe, log
from worker.executor import Run
from worker.orcheo.postgres import outlast_outage
from worker.payload import storable, storable_text


class History:
    """Writes the trace of one run.

    It outlasts a restart of Postgres, and what still cannot be written is logged and left out: a trace
    never costs a run its result. A step may be there twice where Postgres died between its commit and its answer.
    """

    def __init__(self, store: RunHistoryStore, run: Run) -> None:
        self._store = store
        self._run = run

    async def start(self, workflow_id: str, config: RunnableConfigModel) -> None:
        """Open the record; that of an earlier attempt at the run is continued."""
        run = self._run
        await self._write(
            "start",
            self._start(
                workflow_id=workflow_id,
                execution_id=run.run_id,
                inputs=storable(run.inputs),
                runnable_config=storable(config.to_json_config(run.run_id)),
                tags=storable(config.tags),
                callbacks=storable(config.callbacks),
                metadata=storable(config.metadata),
                run_name=storable(config.run_name),
                workspace_id=run.workspace_id,
            ),
        )

    async def step(self, update: Mapping[str, Any]) -> None:
        """Append one update of the graph."""
        await self._write("step", self._append(_storable_step(update)))

    async def completed(self) -> None:
        """Close the record of a run that succeeded."""
        await self._write("completed", self._append({"status": "completed"}))
        await self._write("completed", self._mark_completed())

    async def failed(self, reason: str) -> None:
        """Close the record of a run that failed; `reason` is shown to users."""
        reason = storable_text(reason)
        await self._write("failed", self._append({"status": "error", "error": reason}))
        await self._write("failed", self._mark_failed(reason))

    async def cancelled(self, reason: str) -> None:
        """Close the record of a run that was cancelled or timed out, as the API does for runs of its own."""
        reason = storable_text(reason)
        await self._write("cancelled", self._append({"status": "cancelled", "reason": reason}))
        await self._write("cancelled", self._mark_cancelled(reason))

    async def _write(self, what: str, writing: Awaitable[None]) -> None:
        try:
            await writing
        except Exception as error:  # noqa: BLE001 - A trace never costs a run its result.
            log.warning("history_not_written", run_id=self._run.run_id, what=what, **describe(error))

    @outlast_outage
    async def _start(self, **record: Any) -> None:
        await self._store.start_run(**record)

    @outlast_outage
    async def _append(self, step: Mapping[str, Any]) -> None:
        await self._store.append_step(self._run.run_id, step)

    @outlast_outage
    async def _mark_completed(self) -> None:
        await self._store.mark_completed(self._run.run_id)

    @outlast_outage
    async def _mark_failed(self, reason: str) -> None:
        await self._store.mark_failed(self._run.run_id, reason)

    @outlast_outage
    async def _mark_cancelled(self, reason: str) -> None:
        await self._store.mark_cancelled(self._run.run_id, reason=reason)


def _storable_step(update: Mapping[str, Any]) -> Any:
    """Return `update` in the form that the stock worker writes, as far as it can be stored."""
    try:
        # The history's form differs from the output's: "+00:00" for "Z", the attributes of any object.
        update = normalize_json_mapping(update)
    except Exception as error:  # noqa: BLE001 - Code of the workflow's own types runs here.
        log.debug("history_step_simplified", **describe(error))
    return storable(update)
