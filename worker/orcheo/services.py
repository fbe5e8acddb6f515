"""What the runs of a process share, opened in order, and fitted to the releases and the tables that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import uuid4

import psycopg

from shared.errors import SettingsError
from shared.logs import log
from shared.redaction import redact
from worker.books.group_commit import GroupCommit
from worker.executor import Run
from worker.orcheo.checkpoints import RunSaver
from worker.orcheo.compat import (
    AsyncPostgresSaver,
    AsyncPostgresStore,
    BaseCredentialVault,
    JsonPlusSerializer,
    RunHistoryStore,
    check_calls,
    get_history_store,
    get_repository,
    get_settings,
    get_vault,
    group_commit_lacks,
    load_enabled_plugins,
)
from worker.orcheo.own_saver import OwnSaver
from worker.orcheo.postgres import Pool, may_pass, open_pool
from worker.orcheo.rehearsal import Saver, rehearse
from worker.orcheo.releases import untested
from worker.orcheo.schema import create_tables
from worker.orcheo.tables import explain, look_at_tables
from worker.orcheo.workflow import Loaded, Workflows


@dataclass(frozen=True, slots=True)
class Services:
    """What the runs of a process share: none of it belongs to one run, and none is held during one."""

    pool: Pool
    store: AsyncPostgresStore
    vault: BaseCredentialVault
    workflows: Workflows
    commit: GroupCommit
    make_saver: Callable[[str], Saver]
    """Makes the checkpointer of the run with this id."""


type Perform = Callable[[Services, Run, Loaded], Awaitable[Mapping[str, Any] | None]]


async def open_services(perform: Perform) -> Services:
    """Connect, load Orcheo's plugins, create the tables that are missing, and have `perform` execute the rehearsal.

    Raises `SettingsError` where Orcheo's settings are wrong or its release does not fit, and `DatabaseError` where
    Postgres cannot be reached or its tables do not fit.
    """
    check_calls()
    if (outside := untested()) is not None:
        log.warning("releases_untested", releases=outside)
    dsn, vault, history = await asyncio.to_thread(_configure)
    pool = await open_pool(dsn)
    try:
        store = AsyncPostgresStore(pool)
        await _create_tables(dsn, pool, store, vault, history)
        return await _fit(perform, pool, store, vault)
    except psycopg.Error as error:
        await pool.close()
        raise explain(error) from error
    except BaseException:
        await pool.close()
        raise
    finally:
        await cast("Any", history).close()


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


async def _fit(perform: Perform, pool: Pool, store: AsyncPostgresStore, vault: BaseCredentialVault) -> Services:
    """Return the services, with the checkpointer that fits; what cannot be stored at all is said and left out."""
    mismatch = await look_at_tables(pool)
    commit, serde = GroupCommit(pool), JsonPlusSerializer()
    services = Services(
        pool, store, vault, Workflows(pool), commit, lambda run_id: RunSaver(pool, commit, run_id, serde)
    )

    def rehearsed(
        run: Run, loaded: Loaded, commit: GroupCommit, make_saver: Callable[[str], Saver]
    ) -> Awaitable[Mapping[str, Any] | None]:
        return perform(replace(services, commit=commit, make_saver=make_saver), run, loaded)

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
    if not unfit:
        return services
    return replace(services, make_saver=lambda run_id: OwnSaver(pool, run_id, serde))


def _configure() -> tuple[str, BaseCredentialVault, RunHistoryStore]:
    """Return the DSN, the vault and the history store of Orcheo's settings, and load its plugins.

    The stock worker loads no plugins, so a workflow that imports one fails there and runs in the API.
    """
    try:
        dsn = str(get_settings().postgres_dsn or "")
        # Orcheo makes the history store together with the repository, which itself stays unused here.
        get_repository()
        vault, history = get_vault(), get_history_store()
    except ValueError as error:
        raise SettingsError(redact(f"Orcheo's settings: {error}")) from error
    for plugin in load_enabled_plugins().results:
        if not plugin.loaded:
            log.warning("plugin_not_loaded", plugin=plugin.name)
    return dsn, vault, history
