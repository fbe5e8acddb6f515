"""Write checkpoints through LangGraph's own statements, for tables that ours do not fit.

Slower than the group commit: LangGraph writes each checkpoint by itself.
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
    """The checkpointer of one run: kept in memory, where the run reads it, and stored by LangGraph's own saver.

    Nothing more is stored after the first failure: a checkpoint whose predecessors are missing is of no use.
    """

    def __init__(self, pool: Pool | AsyncConnection[DictRow], run_id: str, serde: SerializerProtocol) -> None:
        super().__init__(serde=serde)
        self._stored = AsyncPostgresSaver(pool, serde=serde)
        self._thread = run_id
        self.error: Exception | None = None
        """Why nothing more is stored."""
        self._abandoned = False

    async def saved(self) -> None:
        """Raise what Postgres raised; there is nothing to wait for."""
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Write nothing more."""
        self._abandoned = True

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint of `config`."""
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
        """Take a checkpoint."""
        if self._is_another(config):
            return await self._stored.aput(config, checkpoint, metadata, new_versions)
        taken = await super().aput(config, checkpoint, metadata, new_versions)
        await self._store(self._stored.aput, config, checkpoint, metadata, new_versions)
        return taken

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Take the writes of one task."""
        if self._is_another(config):
            await self._stored.aput_writes(config, writes, task_id, task_path)
            return
        await super().aput_writes(config, writes, task_id, task_path)
        await self._store(self._stored.aput_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete what is known of a thread."""
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
