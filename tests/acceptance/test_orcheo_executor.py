"""The executor runs real Orcheo workflows on a real Postgres: how runs end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from orcheo.runtime.credentials import CredentialReferenceNotFoundError
from orcheo_backend.app import dependencies
from orcheo_backend.app.dependencies import get_repository, get_vault
from orcheo_backend.app.repository import WorkflowVersionNotFoundError

from orcheo_dispatch.worker.executor.payload import storable
from orcheo_dispatch.worker.executor.protocol import RunRejectedError, load_executor
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute
from tests.support.orcheo.executions import WORKSPACE, another, history, new_run, play
from tests.support.runners.local_outside import LocalExecutor, opened


def test_name_orcheo_in_the_settings_stands_for_this_executor() -> None:
    assert isinstance(load_executor("orcheo"), OrcheoExecutor)


def test_credential_of_the_workspace_is_resolved_and_another_one_is_not(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        vault = get_vault()
        arguments: dict[str, Any] = {"name": "door_key", "provider": "door", "scopes": [], "actor": "test"}
        create = partial(vault.create_credential, **arguments)
        await asyncio.to_thread(create, secret="somebody else's", workspace_id=str(uuid4()))
        with pytest.raises(CredentialReferenceNotFoundError):
            await executor.execute(await new_run("unlock"))
        await asyncio.to_thread(create, secret="swordfish", workspace_id=WORKSPACE)
        output = await executor.execute(await new_run("unlock"))
        assert output is not None
        assert output["final_state"]["node_results"] == {"start": {"length": 9, "resolved": True}}
        traces = everything(orcheo_here, "SELECT payload::text AS step FROM execution_history_steps")
        assert traces
        assert not any("swordfish" in trace["step"] for trace in traces)

    play(scenario)


def test_credential_is_resolved_while_somebody_writes_one(orcheo_here: Database) -> None:
    get_vault().create_credential(
        name="door_key", provider="door", scopes=[], actor="test", secret="swordfish", workspace_id=WORKSPACE
    )
    cast("Any", get_vault()).close()
    # Made anew, as in a runner, after its tables were created.
    dependencies.set_vault(None)

    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("unlock")
        with psycopg.connect(orcheo_here.dsn) as connection:
            connection.execute("LOCK TABLE credentials, credential_templates, governance_alerts IN ROW EXCLUSIVE MODE")
            async with asyncio.timeout(30):
                output = await executor.execute(run)
        assert output is not None
        assert output["final_state"]["node_results"] == {"start": {"length": 9, "resolved": True}}

    play(scenario)


def test_success_returns_final_state_and_writes_history(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet", inputs={"body": {"name": "Ada"}})
        output = await executor.execute(run)
        assert output is not None
        assert output["final_state"]["node_results"] == {"start": {"greeting": "hello Ada"}}
        assert output["final_state"]["config"]["configurable"] == {"thread_id": run.run_id}
        record, steps = history(orcheo_here, run)
        assert record["status"] == "completed"
        assert record["inputs"] == {"body": {"name": "Ada"}}
        assert record["workspace_id"] == WORKSPACE
        assert record["completed_at"] is not None
        assert steps == [
            {"start": {"node_results": {"start": {"greeting": "hello Ada"}}}},
            {"status": "completed"},
        ]

    play(scenario)


def test_failing_node_raises_and_history_redacts_its_error(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("fail")
        with pytest.raises(ValueError, match="no luck"):
            await executor.execute(run)
        record, steps = history(orcheo_here, run)
        assert record["status"] == "error"
        assert record["error"] == "no luck at postgresql://ada:***@db/x \ufffd"
        assert steps == [{"status": "error", "error": record["error"]}]

    play(scenario)


def test_sys_exit_in_a_workflow_fails_its_run_alone(orcheo_here: Database) -> None:
    loop = asyncio.new_event_loop()
    opening = opened(orcheo_here.dsn)
    executor = loop.run_until_complete(opening.__aenter__())
    run = loop.run_until_complete(new_run("leave"))
    executing = loop.create_task(executor.execute(run))
    # asyncio stops a loop at a SystemExit, for each task that it passes through; a runner's starts again.
    while not executing.done():
        with suppress(SystemExit, RuntimeError):
            loop.run_until_complete(executing)
    assert isinstance(executing.exception(), RuntimeError)
    assert "sys.exit(3)" in str(executing.exception())
    assert history(orcheo_here, run)[0]["status"] == "error"
    loop.run_until_complete(opening.__aexit__(None, None, None))
    loop.run_until_complete(cast("Any", get_repository()).close())
    loop.close()


def test_archived_workflow_is_rejected_without_history(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        execute(orcheo_here, "UPDATE workflows SET is_archived = true WHERE id = %s", run.workflow_id)
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived\.$"):
            await executor.execute(run)
        assert everything(orcheo_here, "SELECT FROM execution_history") == []

    play(scenario)


def test_missing_workflow_is_rejected(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        execute(orcheo_here, "DELETE FROM workflows WHERE id = %s", run.workflow_id)
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived or unavailable\.$"):
            await executor.execute(run)

    play(scenario)


def test_workflow_of_another_workspace_is_rejected(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet", workspace_id=str(uuid4()))
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived or unavailable\.$"):
            await executor.execute(run)

    play(scenario)


def test_missing_version_fails_the_run(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        execute(orcheo_here, "DELETE FROM workflow_versions WHERE id = %s", run.workflow_version_id)
        with pytest.raises(WorkflowVersionNotFoundError, match=run.workflow_version_id):
            await executor.execute(run)

    play(scenario)


def test_second_attempt_starts_from_the_inputs_and_continues_history(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet", inputs={"body": {"name": "Ada"}, "messages": [{"role": "user", "content": "hi"}]})
        first = storable(await executor.execute(run))
        second = storable(await executor.execute(replace(run, attempt=2)))
        assert len(second["final_state"]["messages"]) == len(first["final_state"]["messages"]) == 1
        record, steps = history(orcheo_here, run)
        assert record["status"] == "completed"
        assert [step.get("status") for step in steps] == [None, "completed", None, "completed"]

    play(scenario)


def test_runs_of_one_version_share_no_node_state(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        first = await new_run("count")
        for run in (first, another(first)):
            output = await executor.execute(run)
            assert output is not None
            assert output["final_state"]["node_results"]["start"] == {"calls": 1}

    play(scenario)
