"""Execute the built-in workflow without a database, so that imports and caches are warm before the first run.

It runs in the fork server, so that runners neither repeat it nor hold their own copies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.executor.protocol import Output, Run
from orcheo_dispatch.worker.orcheo.compat import AsyncPostgresStore, JsonPlusSerializer, group_commit_lacks, untraced
from orcheo_dispatch.worker.orcheo.opening.built_in import play
from orcheo_dispatch.worker.orcheo.postgres import Clock, make_lazy_pool
from orcheo_dispatch.worker.orcheo.saving.either import MakeSaver, Saver
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver
from orcheo_dispatch.worker.orcheo.services import Services
from orcheo_dispatch.worker.orcheo.vault import LazyVault
from orcheo_dispatch.worker.orcheo.workflow import Loaded

_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)

type Perform = Callable[[Services, Run, Loaded, Outbox], Awaitable[Output]]


def warm_up(perform: Perform) -> None:
    """Have `perform` execute the built-in workflow. Raises `SettingsError` if it cannot be executed.

    It connects to nothing, and does nothing if LangGraph's own saver has to write the checkpoints. LangSmith tracing
    is switched off, because its client starts a thread.
    """
    if group_commit_lacks():
        return
    with untraced():
        asyncio.run(_warm_up(perform))


async def _warm_up(perform: Perform) -> None:
    pool, serde = make_lazy_pool(""), JsonPlusSerializer()
    store, vault = AsyncPostgresStore(pool), LazyVault().as_vault()

    def make_saver(run_id: str, outbox: Outbox) -> Saver:
        return RunSaver(pool, outbox, run_id, serde)

    def without_database(run: Run, loaded: Loaded, outbox: Outbox, make_saver: MakeSaver) -> Awaitable[Output]:
        return perform(Services(store, vault, make_saver), run, loaded, outbox)

    await play(without_database, _Nowhere(), make_saver, Clock(_ANY_TIME, time.monotonic()))


class _Nowhere:
    """An outside that discards all rows."""

    def provided(self, claim: Claim) -> bytes | None:  # noqa: ARG002 - of the protocol
        """Return None, since the workflow is built in."""
        return None

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:  # noqa: ARG002
        """Discard the rows."""
        written: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def resumed(self, tasks: int) -> None:
        """Do nothing: no run is continued."""

    def hasten(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""
