"""Store each step of a run as it ends, and continue after the steps that an earlier attempt stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.books.heads import GRAPH_CHECKSUM, NO_TASK, RESUME, Head
from orcheo_dispatch.worker.books.postgres import Pool
from orcheo_dispatch.worker.books.rows import Rows, rows_to_forget
from orcheo_dispatch.worker.books.units import StaleFenceError, Unit
from orcheo_dispatch.worker.orcheo.compat import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    Command,
    RunnableConfig,
    SerializerProtocol,
    needs_ancestors,
    triggers_of,
)
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver, Saved, Unsaved, Write

_NOT_ENDED = ("__error__", RESUME, "__scheduled__")
"""Channels of writes that a task may have which is to be executed again."""
_STALE = StaleFenceError.__name__
_BRANCH_SECONDS = 0.02
"""How long the writes of a task wait for the next checkpoint, which comes immediately if no other task is active."""


class GraphChangedError(Exception):
    """The graph of a run is not the one whose steps are stored, so the run cannot continue."""

    def __init__(self) -> None:
        super().__init__(
            "The workflow version was changed after this run had begun, so the run cannot continue; requeue it from the"
            " start or create a new one."
        )


class _Forgetting(Unit):
    """Deletes the checkpoints of an earlier attempt."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self._rows = rows_to_forget(run_id)

    def rows(self) -> Rows:
        """Return the rows."""
        return self._rows


class ResumingSaver(RunSaver):
    """The checkpointer of a run that can be resumed.

    No step begins before the checkpoint of the step before it is stored, so a finished step is not executed again. The
    writes of a task are not waited for: they are stored soon, unless the checkpoint after them comes first, as it does
    where no other task is in progress. If a checkpoint cannot be stored, the run continues and no later one is stored:
    it would refer to values that are missing. If the worker no longer holds the run, storing raises `NotWrittenError`,
    which ends the run.
    """

    def __init__(
        self,
        pool: Pool | AsyncConnection[DictRow],
        outbox: Outbox,
        run_id: str,
        serde: SerializerProtocol,
        *,
        heads: Sequence[Head],
        graph: str,
    ) -> None:
        """`heads` are the newest checkpoints of an earlier attempt, one per namespace; none if there was none.

        `graph` is the checksum of the run's graph.
        """
        super().__init__(pool, outbox, run_id, serde)
        self._failed = False
        self._triggers: frozenset[str] | None = None
        self._graph = graph
        for head in heads:
            self._keep(head)

    def follow(self, graph: Any) -> None:
        """Learn from the run's compiled graph which step is its last."""
        self._triggers = triggers_of(graph)

    @property
    def is_stored(self) -> bool:
        """Whether the checkpoints so far are in the tables, so that the run can continue from the last one."""
        return not self._failed

    def check_graph(self) -> None:
        """Raise `GraphChangedError` if the last checkpoint is that of another graph."""
        saved = self._checkpoints.get(("", self._latest.get("", "")))
        if saved is not None and json.loads(saved.metadata).get(GRAPH_CHECKSUM, self._graph) != self._graph:
            raise GraphChangedError

    def unfinished(self, tasks: Sequence[Any]) -> bool:
        """Return whether one of these tasks after the last checkpoint has neither ended nor stopped at an interrupt."""
        writes = self._writes.get(("", self._latest.get("", "")), {})
        seen = {task_id for (task_id, _), write in writes.items() if write.channel not in _NOT_ENDED}
        return any(task.id not in seen and not task.interrupts for task in tasks)

    def answer(self) -> Any:
        """Return the `Command` that continues the run at an interrupt; None if it was not answered.

        A person's answer is stored as LangGraph stores it: as a write of no task after the last checkpoint.
        """
        for (task_id, _), write in self._writes.get(("", self._latest.get("", "")), {}).items():
            if (task_id, write.channel) == (NO_TASK, RESUME):
                return Command(resume=self.serde.loads_typed((write.type, write.content)))
        return None

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints of a thread. Raises `NotWrittenError` if the run's fence is stale."""
        if thread_id != self._thread:
            await super().adelete_thread(thread_id)
            return
        unit = _Forgetting(self.run_id)
        self._outbox.add(unit)
        self._outbox.hasten()
        error = await asyncio.shield(unit.written)
        if error is not None:
            raise error

    def has(self, namespace: str, checkpoint_id: str) -> bool:
        """Return whether the run's graph or one within it stores this checkpoint."""
        return (namespace, checkpoint_id) in self._checkpoints

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and wait until it is in the tables. Raises `NotWrittenError` if the fence is stale.

        The one of the inputs is not waited for, since LangGraph stores another one before the first step, nor is the
        one of the last step: `saved` waits for it, together with the end of the trace.
        """
        if not config["configurable"]["checkpoint_ns"]:
            metadata = cast("CheckpointMetadata", {**metadata, GRAPH_CHECKSUM: self._graph})
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        if self._failed or config["configurable"]["thread_id"] != self._thread:
            return stored
        if not needs_ancestors(metadata):
            place = config["configurable"]
            versions = checkpoint["channel_versions"]
            self._units[-1].supersede(place["checkpoint_ns"], place.get("checkpoint_id", ""), versions)
        if metadata.get("source") != "input" and not self._is_last(config["configurable"]["checkpoint_ns"], checkpoint):
            try:
                await self.saved()
            except NotWrittenError as error:
                if error.kind == _STALE:
                    raise
                self._failed = True
                self.abandon()
                log.warning("run_not_resumable", run_id=self.run_id, error=error.kind)
        return stored

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of one task soon."""
        await super().aput_writes(config, writes, task_id, task_path)
        if self._failed or config["configurable"]["thread_id"] != self._thread:
            return
        unit = self._units[-1]

        def send() -> None:
            if not unit.written.done():
                self._outbox.hasten()

        asyncio.get_running_loop().call_later(_BRANCH_SECONDS, send)

    def _is_last(self, namespace: str, checkpoint: Checkpoint) -> bool:
        """Return whether no step of the run's own graph begins after this checkpoint."""
        updated = checkpoint.get("updated_channels")
        return (
            not namespace and self._triggers is not None and bool(updated) and self._triggers.isdisjoint(updated or ())
        )

    def _keep(self, head: Head) -> None:
        """Keep a checkpoint of an earlier attempt in memory, with the values that later ones refer to."""
        key = (head.namespace, head.checkpoint_id)
        self._checkpoints[key] = Saved(head.parent_id, head.checkpoint, head.metadata)
        self._latest[head.namespace] = head.checkpoint_id
        for blob in head.blobs:
            self._blobs[head.namespace, blob.channel, blob.version] = (blob.type, blob.content)
        self._writes[key] = {
            (write.task_id, write.place): Write(write.task_path, write.channel, write.type or "", write.content)
            for write in head.writes
        }

    def _growing(self) -> Unsaved:
        """Return the unit that new rows belong to; after a failure, one that is never written."""
        return Unsaved(self) if self._failed else super()._growing()
