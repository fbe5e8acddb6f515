"""Write checkpoints with LangGraph's own statements, for tables that our statements do not fit.

Slower than the group commit: LangGraph writes each checkpoint separately.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from orcheo_dispatch.worker.books.postgres import Pool, outlast_outage
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    InMemorySaver,
    RunnableConfig,
    SerializerProtocol,
)


class OwnSaver(InMemorySaver):
    """The checkpointer of one run: it reads from memory, and stores through LangGraph's own saver.

    After the first failure nothing more is stored, because a checkpoint without its predecessors is useless.
    """

    def __init__(self, pool: Pool | AsyncConnection[DictRow], run_id: str, serde: SerializerProtocol) -> None:
        super().__init__(serde=serde)
        self._stored = AsyncPostgresSaver(pool, serde=serde)
        self._thread = run_id
        self.error: Exception | None = None
        """The error after which nothing more is stored; None if there was none."""
        self._abandoned = False

    async def saved(self) -> None:
        """Raise the error of Postgres, if any. There is nothing to wait for."""
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Write nothing more."""
        self._abandoned = True

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` identifies."""
        if self._is_another(config):
            return await outlast_outage(self._stored.aget_tuple)(config)
        return await super().aget_tuple(config)

    async def alist(self, config: RunnableConfig | None, **arguments: Any) -> AsyncIterator[CheckpointTuple]:
        """Yield the checkpoints that match."""
        source = self._stored.alist if config is None or self._is_another(config) else super().alist
        async for each in source(config, **arguments):
            yield each

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint."""
        if self._is_another(config):
            return await self._stored.aput(config, checkpoint, metadata, new_versions)
        taken = await super().aput(config, checkpoint, metadata, new_versions)
        await self._store(self._stored.aput, config, checkpoint, metadata, new_versions)
        return taken

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of one task."""
        if self._is_another(config):
            await self._stored.aput_writes(config, writes, task_id, task_path)
            return
        await super().aput_writes(config, writes, task_id, task_path)
        await self._store(self._stored.aput_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete the checkpoints of a thread."""
        await super().adelete_thread(thread_id)
        await self._store(self._stored.adelete_thread, thread_id)

    async def _store(self, write: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        if self.error is not None or self._abandoned:
            return
        try:
            await outlast_outage(write)(*arguments)
        except Exception as error:  # noqa: BLE001 - the caller of `saved` decides what it means.
            self.error = error

    def _is_another(self, config: RunnableConfig) -> bool:
        return bool(config["configurable"]["thread_id"] != self._thread)
