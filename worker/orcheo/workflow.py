"""The workflow versions that the main process provides; each is sent once per change."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any
from uuid import UUID

from orcheo_dispatch.worker.books.heads import Head
from orcheo_dispatch.worker.books.postgres import Pool, fetch_all
from orcheo_dispatch.worker.books.workflows import MAX_VERSIONS, Provided
from orcheo_dispatch.worker.executor.protocol import Run, RunRejectedError
from orcheo_dispatch.worker.orcheo.compat import (
    LANGGRAPH_SCRIPT_FORMAT,
    StateGraph,
    WorkflowVersion,
    WorkflowVersionNotFoundError,
    build_graph,
    load_graph_untimed,
)
from orcheo_dispatch.worker.orcheo.postgres import Clock

_CHECKSUM_DIGITS = 16
_SELECT_VERSION = """
SELECT payload::text AS payload FROM workflow_versions WHERE id = %(version_id)s
"""


class Version:
    """A stored workflow version."""

    def __init__(self, stored: WorkflowVersion) -> None:
        self.stored = stored
        self._was_built = False

    @cached_property
    def checksum(self) -> str:
        """The checksum of the stored graph: a run continues only on the graph that it began on."""
        return sha256(json.dumps(self.stored.graph, sort_keys=True).encode()).hexdigest()[:_CHECKSUM_DIGITS]

    def build_graph(self) -> StateGraph[Any]:
        """Build a new graph, as the stock worker does: its nodes hold the state of one run.

        Orcheo limits the run time of a script. Off the main thread it does so by tracing each line, which slows down
        the whole process, so a script whose graph has been built once is not timed again.
        """
        graph = self.stored.graph
        if not self._was_built or graph.get("format") != LANGGRAPH_SCRIPT_FORMAT:
            built = build_graph(graph)
            self._was_built = True
            return built
        return load_graph_untimed(graph)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run executes, and what an earlier attempt at it has left in the tables."""

    version: Version
    has_checkpoints: bool
    has_history: bool
    clock: Clock
    resume: bool = False
    """Whether each step is stored when it ends, and the run continues after the steps of an earlier attempt."""
    heads: Sequence[Head] = ()
    """The checkpoints that it continues from, one per namespace."""
    traced: str | None = None
    """The last step of its trace; see `Provided`."""
    waits: bool = False
    """Whether it waits for an answer if it stops at an interrupt."""
    again_because: str | None = None
    """Why it is executed again."""


class Versions:
    """The versions that were sent to this runner; the least recently used ones are dropped."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: OrderedDict[str, Version] = OrderedDict()

    async def load(self, run: Run, provided: Provided) -> Loaded:
        """Return what `run` executes.

        Raises `RunRejectedError` if it may not be executed, and Orcheo's `WorkflowVersionNotFoundError` if the
        version is gone.
        """
        if provided.rejected is not None:
            raise RunRejectedError(provided.rejected)
        if provided.version_missing:
            raise WorkflowVersionNotFoundError(str(UUID(run.workflow_version_id)))
        version = await self._version(provided)
        clock = Clock(datetime.fromisoformat(provided.now), provided.read_at)
        return Loaded(
            version,
            provided.has_checkpoints,
            provided.has_history,
            clock,
            provided.resume,
            provided.heads,
            provided.traced,
            provided.waits,
            provided.again_because,
        )

    async def _version(self, provided: Provided) -> Version:
        known = self._known.get(provided.version_id)
        if provided.payload is not None:
            known = Version(WorkflowVersion.model_validate_json(provided.payload))
        elif known is None:
            # The run that it was sent with was stopped before it began, or many other versions were sent since.
            known = await self._read(provided.version_id)
        self._known[provided.version_id] = known
        self._known.move_to_end(provided.version_id)
        if len(self._known) > MAX_VERSIONS:
            self._known.popitem(last=False)
        return known

    async def _read(self, version_id: str) -> Version:
        rows = await fetch_all(self._pool, _SELECT_VERSION, {"version_id": version_id})
        if not rows:
            raise WorkflowVersionNotFoundError(str(UUID(version_id)))
        return Version(WorkflowVersion.model_validate_json(rows[0]["payload"]))
