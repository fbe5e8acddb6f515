"""The Orcheo executor inside the test's own process, with workflows that signal what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from orcheo.config import get_settings
from orcheo.graph.ingestion import ingest_langgraph_script
from orcheo.models.workflow_entities import WorkflowDraftAccess
from orcheo_backend.app.dependencies import get_repository, get_vault

from orcheo_dispatch.worker.executor.protocol import Run
from tests.support.database.databases import Database
from tests.support.database.runs import everything, one
from tests.support.runners.local_outside import LocalExecutor, opened

WORKSPACE = str(uuid4())
SIGNAL_SECONDS = 20.0
_ACTS = Path(__file__).parents[2] / "acceptance" / "workflows" / "acts.py"

Scenario = Callable[[LocalExecutor], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Signals:
    """What the waiting nodes of a test say, and what they wait for."""

    waiting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    stopped: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    go: asyncio.Event = field(default_factory=asyncio.Event)


_current: list[Signals] = []


def signals() -> Signals:
    """Return the signals of the test that is under way."""
    return _current[-1]


async def heard(signal: asyncio.Semaphore, times: int = 1) -> None:
    """Wait until a signal came so many times."""
    async with asyncio.timeout(SIGNAL_SECONDS):
        for _ in range(times):
            await signal.acquire()


def play(scenario: Scenario) -> None:
    """Run a scenario with an open executor, and signals of its own."""

    async def play_and_close() -> None:
        try:
            async with opened(str(get_settings().postgres_dsn)) as executor:
                await scenario(executor)
        finally:
            # Of this process: the executor needs no repository, and makes a vault only for credentials.
            await cast("Any", get_repository()).close()
            await asyncio.to_thread(cast("Any", get_vault()).close)

    _current.append(Signals())
    try:
        asyncio.run(play_and_close())
    finally:
        _current.pop()


async def new_run(
    act: str, *, inputs: dict[str, Any] | None = None, workspace_id: str = WORKSPACE, script: Path = _ACTS
) -> Run:
    """Return a run of a new workflow of one node, made as Orcheo's upload makes it; `act` is its entrypoint."""
    repository = get_repository()
    workflow = await repository.create_workflow(
        name=act,
        slug=None,
        description=None,
        tags=None,
        draft_access=WorkflowDraftAccess.PERSONAL,
        actor="test",
        workspace_id=WORKSPACE,
    )
    version = await repository.create_version(
        workflow.id,
        graph=ingest_langgraph_script(script.read_text(), entrypoint=act),
        metadata={},
        notes=None,
        created_by="test",
    )
    return Run(
        run_id=str(uuid4()),
        fence=1,
        attempt=1,
        workflow_id=str(workflow.id),
        workflow_version_id=str(version.id),
        workspace_id=workspace_id,
        triggered_by="webhook",
        inputs=inputs or {},
        runnable_config={},
    )


async def traced(database: Database, run: Run) -> None:
    """Wait until the trace of a run is open: it is written a moment after the run has begun."""
    async with asyncio.timeout(SIGNAL_SECONDS):
        while not everything(database, "SELECT FROM execution_history WHERE execution_id = %s", run.run_id):
            await asyncio.sleep(0.02)


def another(run: Run) -> Run:
    """Return another run of the same workflow."""
    return replace(run, run_id=str(uuid4()))


def history(database: Database, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the record of a run's trace and the payloads of its steps."""
    record = one(database, "SELECT * FROM execution_history WHERE execution_id = %s", run.run_id)
    steps = everything(
        database, "SELECT payload FROM execution_history_steps WHERE execution_id = %s ORDER BY step_index", run.run_id
    )
    return record, [step["payload"] for step in steps]
