"""Workflows with cron triggers, made through Orcheo's own repository in the test's own process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from orcheo.graph.ingestion import ingest_langgraph_script
from orcheo.models.workflow_entities import WorkflowDraftAccess
from orcheo.triggers.cron import CronTriggerConfig
from orcheo_backend.app import dependencies
from orcheo_backend.app.providers import create_repository, ensure_credential_service
from orcheo_backend.app.workspace.dependencies import get_workspace_service, reset_workspace_state

from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute

_GREET = Path(__file__).parents[2] / "acceptance" / "workflows" / "greet.py"


def create_workspace(database: Database, slug: str, *, max_runs: int = 100_000, owner: str = "ada") -> str:
    """Create a workspace that may have so many runs at a time; return its id."""
    workspace, _ = get_workspace_service().create_workspace(slug=slug, name=slug, owner_user_id=owner)
    quotas = json.dumps({"max_concurrent_runs": max_runs})
    execute(database, "UPDATE workspaces SET quotas = quotas || %s WHERE slug = %s", quotas, slug)
    return str(workspace.id)


async def create_trigger(workspace_id: str | None, *, version: bool = True, **configuration: Any) -> str:
    """Create a workflow with a cron trigger, as the API does; return the workflow's id."""
    repository = dependencies.get_repository()
    workflow = await repository.create_workflow(
        name=f"cron {uuid4()}",
        slug=None,
        description=None,
        tags=None,
        draft_access=WorkflowDraftAccess.PERSONAL,
        actor="test",
        workspace_id=workspace_id,
    )
    if version:
        await repository.create_version(
            workflow.id,
            graph=ingest_langgraph_script(_GREET.read_text(), entrypoint="build"),
            metadata={},
            notes=None,
            created_by="test",
        )
    await repository.configure_cron_trigger(workflow.id, CronTriggerConfig.model_validate(configuration))
    return str(workflow.id)


def stock_repository(settings: Any) -> Any:
    """Return a repository as a stock worker makes it when it starts."""
    service = ensure_credential_service(settings, dependencies.get_vault())
    return create_repository(settings, service, cast("Any", {}))


def cron_runs(database: Database) -> list[dict[str, Any]]:
    """Return the runs of cron triggers, in the order of their occurrences."""
    return everything(
        database,
        "SELECT id, workflow_id, workspace_id, status, payload, created_at, updated_at, "
        "payload #>> '{input_payload,scheduled_for}' AS scheduled_for FROM workflow_runs "
        "WHERE triggered_by = 'cron' ORDER BY scheduled_for, workflow_id",
    )


def last_dispatched(database: Database) -> dict[str, datetime | None]:
    """Return when each trigger was last dispatched."""
    rows = everything(database, "SELECT workflow_id, last_dispatched_at FROM cron_triggers")
    return {row["workflow_id"]: row["last_dispatched_at"] for row in rows}


def end_runs(database: Database) -> None:
    """Let every run succeed."""
    execute(
        database,
        "UPDATE workflow_runs SET status = 'succeeded', payload = payload || '{\"status\": \"succeeded\"}' "
        "WHERE status IN ('pending', 'running')",
    )


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario against the repository of this process."""

    async def play_and_close() -> None:
        try:
            await scenario()
        finally:
            await cast("Any", dependencies.get_repository()).close()

    reset_workspace_state()
    asyncio.run(play_and_close())


@contextmanager
def without_pushes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep Orcheo's repository of this process from pushing runs to a Celery that is not there."""
    from orcheo_backend.app.repository_postgres import _triggers

    with monkeypatch.context() as patch:
        patch.setattr(_triggers, "_enqueue_run_for_execution", lambda run: None)
        logging.getLogger(_triggers.__name__).setLevel(logging.ERROR)
        yield
