"""Store each step of a run as it ends, and continue after the steps that an earlier attempt stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.books.group_commit import StaleFenceError
from orcheo_dispatch.worker.books.postgres import Pool, outlast_outage
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    RunnableConfig,
    SerializerProtocol,
)
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver

_STALE = StaleFenceError.__name__


class ResumingSaver(RunSaver):
    """The checkpointer of a run that can be resumed.

    No step begins before the checkpoint of the step before it is stored, so a finished step is never executed again.
    The writes of a task are sent at once and not waited for. If a checkpoint cannot be stored, the run continues
    without further ones; if the worker no longer holds the run, storing raises `NotWrittenError`, which ends it.
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
        """`continues` says that an earlier attempt has stored checkpoints: they are read from the tables."""
        super().__init__(pool, outbox, run_id, serde)
        self._continues = continues
        self._failed = False

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` identifies."""
        if not self._continues or config["configurable"]["thread_id"] != self._thread:
            return await super().aget_tuple(config)
        # A new checkpoint refers to values that an earlier attempt stored.
        return await outlast_outage(AsyncPostgresSaver.aget_tuple)(self, config)

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
