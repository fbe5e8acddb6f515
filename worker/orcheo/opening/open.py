"""Prepare a worker in its first runner: create tables, and rehearse a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import uuid4

import psycopg

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.text.redaction import redact
from orcheo_dispatch.worker.books.postgres import Pool, may_pass, open_pool
from orcheo_dispatch.worker.executor.protocol import Output, Run
from orcheo_dispatch.worker.orcheo.compat import (
    AsyncPostgresSaver,
    AsyncPostgresStore,
    BaseCredentialVault,
    JsonPlusSerializer,
    RunHistoryStore,
    create_repository,
    create_vault,
    ensure_credential_service,
    get_settings,
    group_commit_lacks,
)
from orcheo_dispatch.worker.orcheo.opening.rehearsal import rehearse
from orcheo_dispatch.worker.orcheo.opening.schema import create_tables
from orcheo_dispatch.worker.orcheo.opening.tables import explain, look_at_tables
from orcheo_dispatch.worker.orcheo.postgres import make_opening_pool
from orcheo_dispatch.worker.orcheo.releases import untested
from orcheo_dispatch.worker.orcheo.saving.either import MakeSaver
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.services import Found, Services, postgres_dsn
from orcheo_dispatch.worker.orcheo.workflow import Loaded

type Perform = Callable[[Services, Run, Loaded, Outbox], Awaitable[Output]]


async def find(perform: Perform) -> Found:
    """Create missing tables, have `perform` execute the rehearsal, and return what was found.

    All that it opens is closed at the end. Raises `SettingsError` if Orcheo's settings are invalid or its release does
    not fit, and `DatabaseError` if Postgres cannot be reached or its tables do not fit.
    """
    if (outside := untested()) is not None:
        log.warning("releases_untested", releases=outside)
    dsn = postgres_dsn()
    vault, history = await asyncio.to_thread(_make_stores)
    pool = make_opening_pool(dsn)
    try:
        await open_pool(pool)
        store = AsyncPostgresStore(pool)
        await _create_tables(dsn, pool, store, vault, history)
        return await _fit(perform, pool, store, vault)
    except psycopg.Error as error:
        raise explain(error) from error
    finally:
        await cast("Any", history).close()
        await asyncio.to_thread(cast("Any", vault).close)
        await pool.close()


def _make_stores() -> tuple[BaseCredentialVault, RunHistoryStore]:
    """Return Orcheo's configured vault and history store, which create their tables on first use."""
    stores: dict[str, RunHistoryStore] = {}
    try:
        settings = get_settings()
        vault = create_vault(settings)
        # Orcheo creates the history store together with the repository, which is not used here.
        create_repository(settings, ensure_credential_service(settings, vault), stores)
    except ValueError as error:
        raise SettingsError(redact(f"Orcheo's settings: {error}")) from error
    return vault, stores["store"]


async def _create_tables(
    dsn: str, pool: Pool, store: AsyncPostgresStore, vault: BaseCredentialVault, history: RunHistoryStore
) -> None:
    try:
        await create_tables(
            dsn,
            [
                AsyncPostgresSaver(pool).setup,
                store.setup,
                lambda: history.list_histories("", limit=0),
                lambda: asyncio.to_thread(vault.list_all_credentials, workspace_id=str(uuid4())),
            ],
        )
    except psycopg.Error as error:
        if may_pass(error):
            raise
        mismatch = await look_at_tables(pool)
        if not mismatch.checkpoints and not mismatch.traces:
            raise


async def _fit(perform: Perform, pool: Pool, store: AsyncPostgresStore, vault: BaseCredentialVault) -> Found:
    """Return which checkpointer fits; log what cannot be stored at all."""
    mismatch = await look_at_tables(pool)
    serde = JsonPlusSerializer()

    def rehearsed(run: Run, loaded: Loaded, outbox: Outbox, make_saver: MakeSaver) -> Awaitable[Output]:
        return perform(Services(store, vault, make_saver), run, loaded, outbox)

    unfit = group_commit_lacks() or "; ".join(mismatch.checkpoints)
    refused = await rehearse(pool, serde, rehearsed, own_saver=bool(unfit))
    if refused.checkpoints and not unfit:
        unfit = refused.checkpoints
        refused = await rehearse(pool, serde, rehearsed, own_saver=True)
    if refused.traces:
        log.warning("traces_not_stored", reason="; ".join(mismatch.traces) or refused.traces)
    if refused.checkpoints:
        log.warning("checkpoints_not_stored", reason=refused.checkpoints, because=unfit)
    elif unfit:
        log.warning("checkpoints_by_langgraph", reason=unfit)
    return Found("langgraph" if unfit else "outbox")
