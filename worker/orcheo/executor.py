"""Executes runs as Orcheo's stock worker does, many at once on one event loop."""

from __future__ import annotations

import asyncio
import copy
import gc
import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid4

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.postgres.aio import AsyncPostgresStore
from orcheo.config import get_settings
from orcheo.models import CredentialAccessContext
from orcheo.nodes.browser import close_browser_sessions_for_scope
from orcheo.plugins import load_enabled_plugins
from orcheo.runtime.credentials import CredentialResolver, credential_resolution
from orcheo.runtime.runnable_config import RunnableConfigModel, merge_runnable_configs
from orcheo.runtime.state_builder import build_initial_state
from orcheo.tracing import encode_step_namespace, split_subgraph_update
from orcheo.vault import BaseCredentialVault
from orcheo_backend.app.dependencies import get_history_store, get_repository, get_vault
from orcheo_backend.app.history import RunHistoryStore

from shared.errors import SettingsError
from shared.logs import describe, log
from shared.redaction import redact
from worker.error_text import error_text
from worker.executor import Run, Stopped
from worker.orcheo.checkpoints import RunSaver
from worker.orcheo.group_commit import GroupCommit
from worker.orcheo.history import History
from worker.orcheo.postgres import Pool, open_pool
from worker.orcheo.schema import create_tables
from worker.orcheo.workflow import Version, Workflows

_CLOSING_SECONDS = 5.0
_PLAYWRIGHT = "playwright"
_CANCELLED = "Workflow execution cancelled"


@dataclass(frozen=True, slots=True)
class _Services:
    """What the runs of a process share: none of it belongs to one run, and none is held during one."""

    pool: Pool
    store: AsyncPostgresStore
    vault: BaseCredentialVault
    workflows: Workflows
    commit: GroupCommit
    serde: JsonPlusSerializer


class OrcheoExecutor:
    """Executes runs with Orcheo and writes their traces; an `Executor`.

    Like the stock worker it builds the graph anew for each run. A kept graph would share its nodes
    between runs, and Orcheo's nodes hold state: trace metadata, database clients, whatever a script keeps.
    """

    def __init__(self) -> None:
        self._services: _Services | None = None
        self._closings: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect, load Orcheo's plugins and create the tables that are missing.

        Call it on the loop that all runs share. Raises `SettingsError` where Orcheo's settings are
        wrong and `DatabaseError` where Postgres cannot be reached.
        """
        dsn, vault, history = await asyncio.to_thread(_configure)
        pool = await open_pool(dsn)
        try:
            store = AsyncPostgresStore(pool)
            await create_tables(
                dsn,
                [
                    AsyncPostgresSaver(pool).setup,
                    store.setup,
                    lambda: history.list_histories("", limit=0),
                    lambda: asyncio.to_thread(vault.list_all_credentials, workspace_id=str(uuid4())),
                ],
            )
        except BaseException:
            await pool.close()
            raise
        finally:
            await cast("Any", history).close()
        self._services = _Services(pool, store, vault, Workflows(pool), GroupCommit(pool), JsonPlusSerializer())
        # Orcheo's imports leave 400 thousand objects that live as long as the process. Looked through in each full
        # collection, they were a quarter of what a short run cost.
        gc.collect()
        gc.freeze()

    async def execute(self, run: Run) -> Mapping[str, Any] | None:
        """Execute `run` and return its output; see `Executor`.

        Its trace is closed on every way out, even where the run is cancelled. Only where the fence is lost it
        is left as it is: it is the new holder's.
        """
        services = self._opened()
        services.commit.running += 1
        try:
            return await self._execute(services, run)
        finally:
            services.commit.running -= 1

    async def _execute(self, services: _Services, run: Run) -> Mapping[str, Any] | None:
        loaded = await services.workflows.load(run)
        version = loaded.version.stored
        # From a copy: the version is that of other runs too, and nodes may change what is in their config.
        config = merge_runnable_configs(copy.deepcopy(run.runnable_config or version.runnable_config), None)
        history = History(services.commit, run, loaded.clock)
        if not loaded.has_history:
            history.start(str(version.workflow_id), config)
        saver = RunSaver(services.pool, services.commit, run.run_id, services.serde)
        try:
            if loaded.has_checkpoints:
                # What an earlier attempt has checkpointed would be merged into the state of this one.
                await saver.adelete_thread(run.run_id)
            output = await _run_graph(services, run, loaded.version, config, history, saver)
            # Queued before the wait for the checkpoint, so that one statement writes both.
            closed = history.completed()
            await saver.saved()
        except asyncio.CancelledError as cancelled:
            await _close_stopped(run, history, saver, cancelled)
            raise
        except Exception as error:
            await _see_through(run, history.failed(error_text(error)))
            raise
        except SystemExit as error:
            # Raised further, it would stop the loop of all other runs.
            ended = RuntimeError(f"The workflow called sys.exit({error.code!r}).")
            await _see_through(run, history.failed(error_text(ended)))
            raise ended from error
        finally:
            if _PLAYWRIGHT in sys.modules:
                await self._close_browsers(run)
        await _see_through(run, closed)
        return output

    async def close(self) -> None:
        """Finish the traces that are being closed, then disconnect; Orcheo's own pools cannot be opened again."""
        services, self._services = self._opened(), None
        await asyncio.gather(*self._closings)
        await services.commit.close()
        await asyncio.to_thread(cast("Any", services.vault).close)
        await services.pool.close()

    def _opened(self) -> _Services:
        if self._services is None:
            raise RuntimeError("the executor is not open")
        return self._services

    async def _close_browsers(self, run: Run) -> None:
        closing = asyncio.create_task(_close_browsers(run.run_id))
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)
        await _see_through(run, closing)


async def _run_graph(
    services: _Services, run: Run, version: Version, config: RunnableConfigModel, history: History, saver: RunSaver
) -> Mapping[str, Any] | None:
    stored = version.stored
    context = CredentialAccessContext(workflow_id=stored.workflow_id, workspace_id=_uuid(run.workspace_id))
    runtime_config = config.to_runnable_config(run.run_id)
    with credential_resolution(CredentialResolver(services.vault, context=context)):
        graph = version.build_graph().compile(checkpointer=saver, store=services.store)
        state = build_initial_state(
            stored.graph, dict(run.inputs), config.to_state_config(run.run_id), run.workspace_id
        )
        updates = graph.astream(state, config=runtime_config, stream_mode="updates", subgraphs=True, durability="exit")
        # Closed at once on cancellation: left to the garbage collector, the nodes would run on.
        async with aclosing(cast("Any", updates)):
            async for chunk in updates:
                namespace, step = split_subgraph_update(chunk)
                await history.step(encode_step_namespace(step, namespace))
        snapshot = await graph.aget_state(runtime_config)
    return _output(snapshot.values)


async def _close_stopped(run: Run, history: History, saver: RunSaver, cancelled: asyncio.CancelledError) -> None:
    """Say in the trace what the run's status will say; nothing where the run may be another worker's by now."""
    stopped = cancelled.args[0] if cancelled.args else None
    if not isinstance(stopped, Stopped):
        stopped = Stopped("cancelled", _CANCELLED)
    if stopped.status is None:
        history.abandon()
        saver.abandon()
        return
    close = history.failed if stopped.status == "failed" else history.cancelled
    await _see_through(run, close(stopped.reason))


async def _see_through(run: Run, closing: asyncio.Future[Any]) -> None:
    """Await `closing`, which goes on where `run` is cancelled meanwhile, for some seconds at most."""
    try:
        async with asyncio.timeout(_CLOSING_SECONDS):
            await asyncio.shield(closing)
    except TimeoutError:
        log.warning("run_closing_abandoned", run_id=run.run_id, after_s=_CLOSING_SECONDS)


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


async def _close_browsers(run_id: str) -> None:
    try:
        async with asyncio.timeout(_CLOSING_SECONDS):
            await close_browser_sessions_for_scope(run_id)
    except Exception as error:  # noqa: BLE001 - Playwright's: a dead browser costs a run nothing.
        log.warning("browser_not_closed", run_id=run_id, **describe(error))


def _output(values: Any) -> Mapping[str, Any] | None:
    if isinstance(values, dict):
        return {"final_state": values}
    if hasattr(values, "model_dump"):
        return {"final_state": values.model_dump()}
    return None


def _uuid(text: str | None) -> UUID | None:
    return UUID(text) if text is not None else None
