"""The workflows that runs execute: read for many runs in one statement, the version itself only when it is new."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import DictRow

from worker.executor import Run, RunRejectedError
from worker.orcheo.compat import (
    LANGGRAPH_SCRIPT_FORMAT,
    StateGraph,
    WorkflowVersion,
    WorkflowVersionNotFoundError,
    build_graph,
    load_graph_untimed,
)
from worker.orcheo.postgres import Clock, Pool, fetch_all

MAX_VERSIONS = 256
"""Versions kept in memory; an upload is half a megabyte at most, and most are a few kilobytes."""

_MAX_READ_AT_ONCE = 200

# Orcheo's own get_version would do, but its first call in a process reads every pending, running and
# failed run of the table into memory. A row comes back even where the joins find nothing.
_SELECT_WORKFLOWS = """
SELECT run.place, w.id AS workflow_id, w.is_archived, w.workspace_id, v.id AS version_id, v.updated_at,
       CASE WHEN v.updated_at IS DISTINCT FROM run.known_at THEN v.payload END AS payload,
       EXISTS (SELECT FROM checkpoints AS c WHERE c.thread_id = run.id) AS has_checkpoints,
       EXISTS (SELECT FROM execution_history AS h WHERE h.execution_id = run.id) AS has_history,
       clock_timestamp() AS now
  FROM unnest(%(run_ids)s::text[], %(workflow_ids)s::text[], %(version_ids)s::text[], %(known_at)s::timestamptz[])
       WITH ORDINALITY AS run (id, workflow_id, version_id, known_at, place)
  LEFT JOIN workflows w ON w.id = run.workflow_id
  LEFT JOIN workflow_versions v ON v.id = run.version_id
"""


class Version:
    """A version of a workflow as it is stored."""

    def __init__(self, stored: WorkflowVersion, updated_at: datetime) -> None:
        self.stored = stored
        self.updated_at = updated_at
        self._was_built = False

    def build_graph(self) -> StateGraph[Any]:
        """Build the graph anew, as the stock worker does: its nodes hold what belongs to one run.

        Orcheo limits the time of a script. Off the main thread it does so by tracing each line, which makes the
        whole process slow, so a script whose graph has been built once is not timed again.
        """
        graph = self.stored.graph
        if not self._was_built or graph.get("format") != LANGGRAPH_SCRIPT_FORMAT:
            built = build_graph(graph)
            self._was_built = True
            return built
        return load_graph_untimed(graph)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run executes, and what an earlier attempt at it has left."""

    version: Version
    has_checkpoints: bool
    has_history: bool
    clock: Clock


class Workflows:
    """Reads what runs execute.

    Whether a workflow is archived is read for each run. Runs that ask while another statement is under way are
    answered by the next one together, so what they learn is never older than their question.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._asked: list[tuple[Run, asyncio.Future[DictRow]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def load(self, run: Run) -> Loaded:
        """Return what `run` executes.

        Raises `RunRejectedError` where its workflow is archived, gone or of another workspace, all of which may have
        happened since the run began, and Orcheo's `WorkflowVersionNotFoundError` where only the version is gone.
        """
        row = await self._ask(run)
        if row["workflow_id"] is None or _is_foreign(row["workspace_id"], run.workspace_id):
            raise RunRejectedError("Workflow is archived or unavailable.")
        if row["is_archived"]:
            raise RunRejectedError("Workflow is archived.")
        if row["version_id"] is None:
            raise WorkflowVersionNotFoundError(str(UUID(run.workflow_version_id)))
        return Loaded(self._version(row), row["has_checkpoints"], row["has_history"], row["clock"])

    def _version(self, row: DictRow) -> Version:
        known: Version | None = row["known"]
        if known is None or known.updated_at != row["updated_at"]:
            known = Version(WorkflowVersion.model_validate(row["payload"]), row["updated_at"])
        self._versions[row["version_id"]] = known
        self._versions.move_to_end(row["version_id"])
        if len(self._versions) > MAX_VERSIONS:
            self._versions.popitem(last=False)
        return known

    async def _ask(self, run: Run) -> DictRow:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[DictRow] = loop.create_future()
        self._asked.append((run, answer))
        if self._reading is None:
            self._reading = loop.create_task(self._read())
        return await answer

    async def _read(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked[:_MAX_READ_AT_ONCE], self._asked[_MAX_READ_AT_ONCE:]
                await self._answer(asked)
        finally:
            self._reading = None

    async def _answer(self, asked: Sequence[tuple[Run, asyncio.Future[DictRow]]]) -> None:
        runs = [run for run, _ in asked]
        known = [self._versions.get(run.workflow_version_id) for run in runs]
        parameters = {
            "run_ids": [run.run_id for run in runs],
            "workflow_ids": [run.workflow_id for run in runs],
            "version_ids": [run.workflow_version_id for run in runs],
            "known_at": [version.updated_at if version else None for version in known],
        }
        try:
            rows = await fetch_all(self._pool, _SELECT_WORKFLOWS, parameters)
        except Exception as error:  # noqa: BLE001 - each run fails with it, as if it had asked alone.
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        read_at = time.monotonic()
        for row in rows:
            place = row["place"] - 1
            if not asked[place][1].done():
                asked[place][1].set_result({**row, "known": known[place], "clock": Clock(row["now"], read_at)})


def _is_foreign(owner: str | None, workspace_id: str) -> bool:
    """Tell whether the workflow belongs to another workspace; one without an owner belongs to all, as in Orcheo."""
    return owner is not None and owner != workspace_id
