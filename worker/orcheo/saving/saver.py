"""Write a run's checkpoints as LangGraph's rows, together with its other rows; read them from memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow

from orcheo_dispatch.worker.books.postgres import Pool, outlast_outage
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    RunnableConfig,
    SerializerProtocol,
    get_checkpoint_id,
    is_delta_snapshot,
    serializable_metadata,
    write_indexes,
)
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox

_Key = tuple[str, str]
"""A namespace, and the id of a checkpoint in it."""


@dataclass(slots=True)
class Saved:
    """A checkpoint in the form of its row."""

    parent_id: str | None
    checkpoint: str
    metadata: str


@dataclass(slots=True)
class Write:
    """A task's write that belongs to a checkpoint, in the form of its row."""

    task_path: str
    channel: str
    type: str
    content: bytes


class Unsaved(Unit):
    """The part of a saver's contents that is not in the tables yet."""

    def __init__(self, saver: RunSaver) -> None:
        super().__init__(saver.run_id)
        self._saver = saver
        self.blobs: dict[tuple[str, str, str], None] = {}
        self.checkpoints: dict[_Key, None] = {}
        self.writes: dict[tuple[_Key, str, int], None] = {}

    def rows(self) -> Rows:
        """Return the rows."""
        return self._saver.rows(self)

    def supersede(self, namespace: str, checkpoint_id: str, versions: Mapping[str, Any]) -> None:
        """Leave out a checkpoint and its writes, since a later one, which has these versions, is in this unit."""
        key = (namespace, checkpoint_id)
        self.writes = {place: None for place in self.writes if place[0] != key}
        if key not in self.checkpoints:
            return
        del self.checkpoints[key]
        if [place for place, _ in self.checkpoints].count(namespace) == 1:
            self.blobs = {
                (place, channel, version): None
                for place, channel, version in self.blobs
                if place != namespace or versions.get(channel) == version
            }


class RunSaver(AsyncPostgresSaver):
    """The checkpointer of one run that starts from the beginning: its thread has no checkpoint in the tables.

    It keeps all checkpoints of the run in memory, so it reads none. It writes through the outbox; `saved` waits until
    that is done. All other calls use LangGraph's own statements, after all rows are written.
    """

    def __init__(
        self, pool: Pool | AsyncConnection[DictRow], outbox: Outbox, run_id: str, serde: SerializerProtocol
    ) -> None:
        super().__init__(pool, serde=serde)
        self._outbox = outbox
        self.run_id = self._thread = run_id
        self._checkpoints: dict[_Key, Saved] = {}
        self._latest: dict[str, str] = {}
        self._blobs: dict[tuple[str, str, str], tuple[str, bytes | None]] = {}
        self._writes: dict[_Key, dict[tuple[str, int], Write]] = {}
        self._units: list[Unsaved] = []

    def config(self) -> RunnableConfig:
        """Return the config that identifies the latest checkpoint of the run's own graph."""
        return {"configurable": {"thread_id": self._thread, "checkpoint_ns": ""}}

    async def saved(self) -> None:
        """Wait until everything is written to the tables. Raises `NotWrittenError` if that fails."""
        while self._units:
            # Nothing is sent after what could not be written: it may refer to that.
            if not self._units[0].written.done():
                self._outbox.hasten()
            error = await asyncio.shield(self._units[0].written)
            if error is not None:
                raise error
            del self._units[:1]

    def abandon(self) -> None:
        """Write nothing more, and drop what has not been sent."""
        for unit in self._units:
            self._outbox.drop(unit)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` identifies."""
        thread_id, namespace = config["configurable"]["thread_id"], config["configurable"].get("checkpoint_ns", "")
        if thread_id != self._thread:
            return await outlast_outage(super().aget_tuple)(config)
        key = (namespace, get_checkpoint_id(config) or self._latest.get(namespace, ""))
        return self._tuple(key) if key in self._checkpoints else None

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, divided among the tables as by LangGraph's own saver."""
        configurable = config["configurable"]
        if configurable["thread_id"] != self._thread:
            return await super().aput(config, checkpoint, metadata, new_versions)
        namespace = configurable["checkpoint_ns"]
        unit = self._growing()
        inline: dict[str, Any] = {}
        blobs: dict[str, Any] = {}
        for channel, value in checkpoint["channel_values"].items():
            if value is None or isinstance(value, str | int | float | bool):
                inline[channel] = value
                continue
            blobs[channel] = value
            if is_delta_snapshot(value):
                inline[channel] = True
        for channel, version in new_versions.items():
            if channel in blobs:
                place = (namespace, channel, cast("str", version))
                self._blobs[place] = self.serde.dumps_typed(blobs[channel])
                unit.blobs[place] = None
        key = (namespace, checkpoint["id"])
        self._checkpoints[key] = Saved(
            configurable.get("checkpoint_id"),
            json.dumps({**checkpoint, "channel_values": inline}),
            json.dumps(serializable_metadata(config, metadata)),
        )
        self._latest[namespace] = max(self._latest.get(namespace, ""), checkpoint["id"])
        unit.checkpoints[key] = None
        return _config(self._thread, namespace, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of one task."""
        configurable = config["configurable"]
        if configurable["thread_id"] != self._thread:
            await super().aput_writes(config, writes, task_id, task_path)
            return
        key = (configurable["checkpoint_ns"], configurable["checkpoint_id"])
        unit = self._growing()
        taken = self._writes.setdefault(key, {})
        replaces = all(channel in write_indexes for channel, _ in writes)
        for place, (channel, value) in enumerate(writes):
            index = write_indexes.get(channel, place)
            if replaces or (task_id, index) not in taken:
                taken[task_id, index] = Write(task_path, channel, *self.serde.dumps_typed(value))
                unit.writes[key, task_id, index] = None

    def rows(self, unit: Unsaved) -> Rows:
        """Return the rows of `unit`."""
        rows = Rows()
        for namespace, channel, version in unit.blobs:
            kind, content = self._blobs[namespace, channel, version]
            row = self._row(namespace, {"channel": channel, "version": version, "type": kind})
            rows.add_bytes("blobs", row, content)
        for namespace, checkpoint_id in unit.checkpoints:
            saved = self._checkpoints[namespace, checkpoint_id]
            text = self._row(namespace, {"checkpoint_id": checkpoint_id, "parent_checkpoint_id": saved.parent_id})
            rows.add("checkpoints", f'{text[:-1]}, "checkpoint": {saved.checkpoint}, "metadata": {saved.metadata}}}')
        for (namespace, checkpoint_id), task_id, index in unit.writes:
            write = self._writes[namespace, checkpoint_id][task_id, index]
            place = {"checkpoint_id": checkpoint_id, "task_id": task_id, "task_path": write.task_path, "idx": index}
            row = self._row(namespace, {**place, "channel": write.channel, "type": write.type})
            rows.add_bytes("writes", row, write.content)
        return rows

    def _row(self, namespace: str, columns: dict[str, Any]) -> str:
        return json.dumps({"thread_id": self._thread, "checkpoint_ns": namespace, **columns})

    def _growing(self) -> Unsaved:
        if not self._units or self._units[-1].sealed:
            self._units.append(Unsaved(self))
            self._outbox.add(self._units[-1])
        return self._units[-1]

    def _tuple(self, key: _Key) -> CheckpointTuple:
        """Return a checkpoint as if read from the tables, with values encoded and decoded by the serializer."""
        namespace, checkpoint_id = key
        saved = self._checkpoints[key]
        checkpoint = json.loads(saved.checkpoint)
        values = checkpoint["channel_values"]
        for channel, version in checkpoint["channel_versions"].items():
            kind, content = self._blobs.get((namespace, channel, version), ("empty", None))
            if kind != "empty":
                values[channel] = self.serde.loads_typed((kind, content or b""))
        writes = sorted(
            self._writes.get(key, {}).items(),
            key=lambda item: (item[1].task_path, *item[0]),
        )
        return CheckpointTuple(
            _config(self._thread, namespace, checkpoint_id),
            checkpoint,
            json.loads(saved.metadata),
            _config(self._thread, namespace, saved.parent_id) if saved.parent_id else None,
            [(task, write.channel, self.serde.loads_typed((write.type, write.content))) for (task, _), write in writes],
        )

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """Write everything first, so that LangGraph's own statements see it."""
        await self.saved()
        async with super()._cursor(pipeline=pipeline) as cursor:
            yield cursor


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}}
