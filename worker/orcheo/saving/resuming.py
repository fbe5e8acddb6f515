"""Store each step of a run as it ends, and continue after the steps that an earlier attempt stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.books.postgres import Pool, outlast_outage
from orcheo_dispatch.worker.books.units import StaleFenceError
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    RunnableConfig,
    SerializerProtocol,
    write_indexes,
)
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver, Saved, Unsaved, Write

_STALE = StaleFenceError.__name__


class ResumingSaver(RunSaver):
    """The checkpointer of a run that can be resumed.

    No step begins before the checkpoint of the step before it is stored, so a finished step is not executed again. The
    writes of a task are sent immediately and not waited for. If a checkpoint cannot be stored, the run continues and
    no later one is stored: it would refer to values that are missing. If the worker no longer holds the run, storing
    raises `NotWrittenError`, which ends the run.
    """

    def __init__(
        self,
        pool: Pool | AsyncConnection[DictRow],
        outbox: Outbox,
        run_id: str,
        serde: SerializerProtocol,
        *,
        continues: bool,
    ) -> None:
        """With `continues`, an earlier attempt has stored checkpoints; they are read from the tables once each."""
        super().__init__(pool, outbox, run_id, serde)
        self._continues = continues
        self._failed = False

    def has(self, namespace: str, checkpoint_id: str) -> bool:
        """Return whether the run's graph or one within it stores this checkpoint."""
        return (namespace, checkpoint_id) in self._checkpoints

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` identifies."""
        found = await super().aget_tuple(config)
        if found is not None or not self._continues or self._failed:
            return found
        if config["configurable"]["thread_id"] != self._thread:
            return None
        stored = await outlast_outage(AsyncPostgresSaver.aget_tuple)(self, config)
        if stored is not None:
            self._keep(stored)
        return stored

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and wait until it is in the tables. Raises `NotWrittenError` if the fence is stale."""
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        if not self._failed and config["configurable"]["thread_id"] == self._thread:
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
        """Send the writes of one task immediately."""
        await super().aput_writes(config, writes, task_id, task_path)
        if not self._failed:
            self._outbox.hasten()

    def _keep(self, stored: CheckpointTuple) -> None:
        """Keep a checkpoint of an earlier attempt in memory: new ones refer to its values."""
        namespace, checkpoint = stored.config["configurable"]["checkpoint_ns"], stored.checkpoint
        for channel, version in checkpoint["channel_versions"].items():
            if channel not in checkpoint["channel_values"]:
                continue
            value = checkpoint["channel_values"][channel]
            self._blobs[namespace, channel, cast("str", version)] = self.serde.dumps_typed(value)
        parent = stored.parent_config
        key = (namespace, checkpoint["id"])
        self._checkpoints[key] = Saved(
            parent["configurable"]["checkpoint_id"] if parent is not None else None,
            json.dumps({**checkpoint, "channel_values": {}}),
            json.dumps(stored.metadata),
        )
        self._latest[namespace] = max(self._latest.get(namespace, ""), checkpoint["id"])
        kept = self._writes.setdefault(key, {})
        places: Counter[str] = Counter()
        for task_id, channel, value in stored.pending_writes or ():
            index = write_indexes.get(channel)
            if index is None:
                index = places[task_id]
                places[task_id] += 1
            kept[task_id, index] = Write("", channel, *self.serde.dumps_typed(value))

    def _growing(self) -> Unsaved:
        """Return the unit that new rows belong to; after a failure, one that is never written."""
        return Unsaved(self) if self._failed else super()._growing()
