"""Executes runs as Orcheo's stock worker does, many at a time on one event loop."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Literal, cast
from uuid import UUID

from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.worker.books.workflows import Provided
from orcheo_dispatch.worker.executor.error_text import error_text
from orcheo_dispatch.worker.executor.outside import Outside
from orcheo_dispatch.worker.executor.protocol import Output, Run, Stopped, Waiting
from orcheo_dispatch.worker.orcheo.compat import (
    CredentialAccessContext,
    CredentialResolver,
    RunnableConfigModel,
    build_initial_state,
    check_calls,
    close_browser_sessions_for_scope,
    credential_resolution,
    encode_step_namespace,
    let_unstored_graphs_end_steps,
    merge_runnable_configs,
    split_subgraph_update,
)
from orcheo_dispatch.worker.orcheo.cron import OrcheoCron
from orcheo_dispatch.worker.orcheo.idempotency import provide_in_templates, with_step_values
from orcheo_dispatch.worker.orcheo.opening.open import find
from orcheo_dispatch.worker.orcheo.opening.sharing import share_code
from orcheo_dispatch.worker.orcheo.opening.warming import warm_up
from orcheo_dispatch.worker.orcheo.saving.either import Saver
from orcheo_dispatch.worker.orcheo.saving.history import History
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox
from orcheo_dispatch.worker.orcheo.saving.resuming import ResumingSaver
from orcheo_dispatch.worker.orcheo.services import Attached, Found, Services, attach, prepare
from orcheo_dispatch.worker.orcheo.workflow import Loaded
from orcheo_dispatch.worker.orcheo.workspace import within_workspace

Durability = Literal["sync", "exit"]
"""When LangGraph stores a checkpoint: after each step, or once at the end."""
_CLOSING_SECONDS = 5.0
_PLAYWRIGHT = "playwright"
_CANCELLED = "Workflow execution cancelled"


class OrcheoExecutor:
    """Executes runs with Orcheo and writes their traces; an `Executor`.

    Like the stock worker, it builds the graph for each run. A cached graph would share its nodes between runs, and
    Orcheo's nodes hold state, such as trace metadata, database clients, or anything that a script keeps.
    """

    def __init__(self) -> None:
        self._outside: Outside | None = None
        self._attached: Attached | None = None
        self._closings: set[asyncio.Task[None]] = set()
        self._cron = OrcheoCron()

    def prepare(self) -> None:
        """Load once what all runners share, before they are forked. It opens nothing and starts no thread.

        Raises `SettingsError` if Orcheo's settings are invalid or its release does not fit.
        """
        check_calls()
        prepare()
        provide_in_templates()
        let_unstored_graphs_end_steps()
        share_code()
        warm_up(self._perform)

    async def open(self) -> bytes:
        """Create tables, execute the built-in workflow, and return what `attach` needs to know; see `find`.

        Called in one runner of a worker, before all others. It leaves no open connection.
        """
        return (await find(self._perform)).encode()

    async def attach(self, outside: Outside, found: bytes) -> None:
        """Prepare to execute runs on the current event loop, without connecting to anything."""
        self._outside, self._attached = outside, attach(Found.decode(found))

    async def execute(self, run: Run) -> Output:
        """Execute `run` and return its output; see `Executor`.

        Its trace is closed in every case, even if the run is cancelled, unless the worker may not decide how the run
        ends (a lost fence or lease, or `hold`): then the trace is left unchanged.
        """
        if self._outside is None or self._attached is None:
            raise RuntimeError("the executor is not attached")
        provided = self._outside.provided(run.claim)
        if provided is None:
            raise RuntimeError("nothing was provided for this run")
        loaded = await self._attached.versions.load(run, Provided.decode(provided))
        outbox = Outbox(self._outside, run.claim)
        try:
            return await self._perform(self._attached.services, run, loaded, outbox)
        finally:
            outbox.close()

    async def _perform(self, services: Services, run: Run, loaded: Loaded, outbox: Outbox) -> Output:
        version = loaded.version.stored
        # A copy, since other runs use the same version and nodes may change their config.
        config = within_workspace(
            merge_runnable_configs(copy.deepcopy(run.runnable_config or version.runnable_config), None),
            run.workspace_id,
        )
        history = History(outbox, run, loaded.clock)
        if not loaded.has_history:
            history.start(str(version.workflow_id), config)
        saver: Saver
        if loaded.resume and services.make_resuming_saver is not None:
            saver = services.make_resuming_saver(run.run_id, outbox, loaded.heads, loaded.version.checksum)
        else:
            saver = services.make_saver(run.run_id, outbox)
        try:
            if loaded.has_checkpoints and not (isinstance(saver, ResumingSaver) and loaded.heads):
                # Checkpoints of an earlier attempt would be merged into the state of this one.
                await saver.adelete_thread(run.run_id)
            output = await _run_graph(services, run, loaded, config, history, saver)
            # Queued before waiting for the checkpoint, so that one statement writes both.
            if isinstance(output, Waiting):
                closed = history.waiting(output.interrupts)
            else:
                closed = history.completed(traced=loaded.traced)
            await _save(run, saver, history)
        except asyncio.CancelledError as cancelled:
            await _close_stopped(run, history, saver, cancelled)
            raise
        except Exception as error:
            await _see_through(run, history.failed(error_text(error)))
            raise
        except SystemExit as error:
            # Propagated, it would stop the event loop of all other runs.
            ended = RuntimeError(f"The workflow called sys.exit({error.code!r}).")
            await _see_through(run, history.failed(error_text(ended)))
            raise ended from error
        finally:
            if _PLAYWRIGHT in sys.modules:
                await self._close_browsers(run)
        await _see_through(run, closed)
        return output

    async def dispatch_cron(self) -> CronReport:
        """Create the runs of due cron triggers; see `Executor`."""
        return await self._cron.dispatch()

    async def close(self) -> None:
        """Wait until browsers are closed, then close the connections that nodes have opened."""
        attached, self._attached = self._attached, None
        if attached is None:
            return
        await asyncio.gather(*self._closings)
        await asyncio.to_thread(attached.vault.close_made)
        await attached.pool.close()

    async def _close_browsers(self, run: Run) -> None:
        closing = asyncio.create_task(_close_browsers(run.run_id))
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)
        await _see_through(run, closing)


async def _run_graph(
    services: Services, run: Run, loaded: Loaded, config: RunnableConfigModel, history: History, saver: Saver
) -> Output:
    stored = loaded.version.stored
    durability: Durability = "sync" if isinstance(saver, ResumingSaver) else "exit"
    context = CredentialAccessContext(workflow_id=stored.workflow_id, workspace_id=UUID(run.workspace_id))
    is_stored = saver.has if isinstance(saver, ResumingSaver) else None
    runtime_config = with_step_values(config.to_runnable_config(run.run_id), run, is_stored)
    with credential_resolution(CredentialResolver(services.vault, context=context)):
        graph = loaded.version.build_graph().compile(checkpointer=saver, store=services.store)
        # Without inputs LangGraph continues after the last checkpoint of the thread.
        state: Any = None
        if isinstance(saver, ResumingSaver):
            saver.follow(graph)
        if isinstance(saver, ResumingSaver) and loaded.heads:
            saver.check_graph()
            found = await graph.aget_state(runtime_config)
            answer = saver.answer()
            interrupts = [each for task in found.tasks for each in task.interrupts]
            # Not `next`, which leaves out tasks whose writes are stored and whose checkpoint is not.
            if not found.tasks or (interrupts and answer is None and not saver.unfinished(found.tasks)):
                # It had ended, or stopped at an interrupt, when its worker was lost: nothing to execute.
                if interrupts and loaded.traced not in ("__interrupt__", "waiting"):
                    await history.step({"__interrupt__": interrupts})
                return _output(found, saver, loaded)
            state = answer
            step = int((found.metadata or {}).get("step", -1))
            await history.resumed(step, tasks=[task.name for task in found.tasks], because=loaded.again_because)
        else:
            state = build_initial_state(
                stored.graph, dict(run.inputs), config.to_state_config(run.run_id), run.workspace_id
            )
        updates = graph.astream(
            state, config=runtime_config, stream_mode="updates", subgraphs=True, durability=durability
        )
        # Closed immediately on cancellation: until it is garbage-collected, its nodes would continue.
        async with aclosing(cast("Any", updates)):
            async for chunk in updates:
                namespace, step_update = split_subgraph_update(chunk)
                await history.step(encode_step_namespace(step_update, namespace))
        return _output(await graph.aget_state(runtime_config), saver, loaded)


async def _save(run: Run, saver: Saver, history: History) -> None:
    """Wait until the checkpoint is stored. If it cannot be, the run still has its result."""
    try:
        await saver.saved()
    except Exception as error:  # noqa: BLE001 - as above
        told = {"error": error.kind} if isinstance(error, NotWrittenError) else describe(error)
        log.warning("checkpoint_not_written", run_id=run.run_id, **told)
        await _see_through(run, history.checkpoint_lost(told["error"]))


async def _close_stopped(run: Run, history: History, saver: Saver, cancelled: asyncio.CancelledError) -> None:
    """Close the trace as failed or cancelled; if this worker does not decide how the run ends, write nothing.

    A run that becomes pending again has a trace that says cancelled until it is continued.
    """
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
    """Await `closing` for a limited time; `closing` continues if `run` is cancelled in the meantime."""
    try:
        async with asyncio.timeout(_CLOSING_SECONDS):
            await asyncio.shield(closing)
    except TimeoutError:
        log.warning("run_closing_abandoned", run_id=run.run_id, after_s=_CLOSING_SECONDS)


async def _close_browsers(run_id: str) -> None:
    try:
        async with asyncio.timeout(_CLOSING_SECONDS):
            await close_browser_sessions_for_scope(run_id)
    except Exception as error:  # noqa: BLE001 - Playwright's: a crashed browser does not fail a run.
        log.warning("browser_not_closed", run_id=run_id, **describe(error))


def _output(snapshot: Any, saver: Saver, loaded: Loaded) -> Output:
    """Return the output of a run that has ended, or where it waits for an answer."""
    output = _final_state(snapshot.values)
    interrupts = [each for task in snapshot.tasks for each in task.interrupts]
    if interrupts and loaded.waits and isinstance(saver, ResumingSaver) and saver.is_stored:
        asked = [{"id": each.id, "value": each.value} for each in interrupts]
        waits_at = snapshot.config["configurable"]["checkpoint_id"]
        return Waiting({**(output or {}), "interrupts": asked}, waits_at, len(interrupts))
    return output


def _final_state(values: Any) -> Mapping[str, Any] | None:
    if isinstance(values, dict):
        return {"final_state": values}
    if hasattr(values, "model_dump"):
        return {"final_state": values.model_dump()}
    return None
