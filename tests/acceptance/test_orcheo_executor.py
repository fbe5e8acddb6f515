"""The executor runs real Orcheo workflows on a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psycopg
import pytest
from orcheo.config import get_settings
from orcheo.graph.ingestion import ingest_langgraph_script
from orcheo.models.workflow_entities import WorkflowDraftAccess
from orcheo_backend.app import dependencies
from orcheo_backend.app.repository import WorkflowVersionNotFoundError
from psycopg.rows import dict_row

from worker.executor import Executor, Run, RunRejectedError, load_executor
from worker.orcheo.executor import OrcheoExecutor
from worker.orcheo.postgres import POOL_SIZE
from worker.payload import storable

WORKSPACE = str(uuid4())

_SCRIPT = """
import asyncio, sys
from langgraph.graph import END, StateGraph
from orcheo.graph.state import State
from orcheo.nodes.base import TaskNode
from orcheo.nodes.logic import DelayNode, SetVariableNode

class FailingNode(TaskNode):
    async def run(self, state, config):
        raise ValueError("no luck at postgresql://ada:hunter2@db/x \\x00")

class ExitNode(TaskNode):
    async def run(self, state, config):
        sys.exit(3)

class UnstorableNode(TaskNode):
    async def run(self, state, config):
        return {{"nan": float("nan"), "text": "a\\x00b\\ud800", "keys": {{1: float("inf")}}}}

class CountingNode(TaskNode):
    calls: list = []
    async def run(self, state, config):
        self.calls.append(1)
        return {{"calls": len(self.calls)}}

def build():
    graph = StateGraph(State)
    graph.add_node("start", {node})
    graph.set_entry_point("start")
    graph.add_edge("start", END)
    return graph
"""
GREET = "SetVariableNode(name='start', variables={'greeting': 'hello {{inputs.body.name}}'})"
FAIL = "FailingNode(name='start')"
EXIT = "ExitNode(name='start')"
UNSTORABLE = "UnstorableNode(name='start')"
COUNT = "CountingNode(name='start')"

_OPEN_AND_CLOSE = """
import asyncio
from worker.orcheo.executor import OrcheoExecutor

async def main():
    executor = OrcheoExecutor()
    input()
    await executor.open()
    await executor.close()

print("ready", flush=True)
asyncio.run(main())
"""


class Database(Protocol):
    """What the fixture `database` gives: a database with Orcheo's tables."""

    dsn: str


Scenario = Callable[[Executor], Awaitable[None]]


@pytest.fixture
def dsn(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point Orcheo, which keeps its settings and stores in module variables, at the test's database."""
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", database.dsn)
    monkeypatch.setenv("ORCHEO_VAULT_ENCRYPTION_KEY", "k" * 32)
    monkeypatch.setenv("ORCHEO_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("_repository_ref", "_history_store_ref"):
        monkeypatch.setattr(dependencies, name, {})
    monkeypatch.setattr(dependencies, "_vault_ref", {"vault": None})
    monkeypatch.setattr(dependencies, "_credential_service_ref", {"service": None})
    get_settings(refresh=True)
    return database.dsn


def test_success_returns_final_state_and_writes_history(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET, inputs={"body": {"name": "Ada"}})
        output = await executor.execute(run)
        assert output is not None
        assert output["final_state"]["node_results"] == {"start": {"greeting": "hello Ada"}}
        assert output["final_state"]["config"]["configurable"] == {"thread_id": run.run_id}
        record, steps = _history(dsn, run)
        assert record["status"] == "completed"
        assert record["inputs"] == {"body": {"name": "Ada"}}
        assert record["workspace_id"] == WORKSPACE
        assert record["completed_at"] is not None
        assert steps == [
            {"start": {"node_results": {"start": {"greeting": "hello Ada"}}}},
            {"status": "completed"},
        ]

    _play(scenario)


def test_failing_node_raises_and_history_redacts_its_error(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(FAIL)
        with pytest.raises(ValueError, match="no luck"):
            await executor.execute(run)
        record, steps = _history(dsn, run)
        assert record["status"] == "error"
        assert record["error"] == "no luck at postgresql://ada:***@db/x \ufffd"
        assert steps == [{"status": "error", "error": record["error"]}]

    _play(scenario)


def test_archived_workflow_is_rejected_without_history(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET)
        with _connect(dsn) as connection:
            connection.execute("UPDATE workflows SET is_archived = true WHERE id = %s", (run.workflow_id,))
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived\.$"):
            await executor.execute(run)
        with _connect(dsn) as connection:
            assert connection.execute("SELECT 1 FROM execution_history").fetchone() is None

    _play(scenario)


def test_missing_workflow_is_rejected(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET)
        with _connect(dsn) as connection:
            connection.execute("DELETE FROM workflows WHERE id = %s", (run.workflow_id,))
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived or unavailable\.$"):
            await executor.execute(run)

    _play(scenario)


def test_workflow_of_another_workspace_is_rejected(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET, workspace_id=str(uuid4()))
        with pytest.raises(RunRejectedError, match=r"^Workflow is archived or unavailable\.$"):
            await executor.execute(run)

    _play(scenario)


def test_missing_version_fails_the_run(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET)
        with _connect(dsn) as connection:
            connection.execute("DELETE FROM workflow_versions WHERE id = %s", (run.workflow_version_id,))
        with pytest.raises(WorkflowVersionNotFoundError, match=run.workflow_version_id):
            await executor.execute(run)

    _play(scenario)


def test_cancel_closes_history_and_stops_the_workflow(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run("DelayNode(name='start', duration_seconds=600)")
        before = asyncio.all_tasks()
        execution = asyncio.create_task(_execute(executor, run))
        await _until(lambda: _is_waiting(before), "the workflow to wait")
        execution.cancel("timed out")
        with pytest.raises(asyncio.CancelledError):
            await execution
        record, steps = _history(dsn, run)
        assert (record["status"], record["error"]) == ("cancelled", "timed out")
        assert steps == [{"status": "cancelled", "reason": "timed out"}]
        await _until(lambda: not _is_waiting(before), "the workflow's tasks to end")

    _play(scenario)


def test_unstorable_output_leaves_history_whole(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(UNSTORABLE, inputs={"note": "x\x00y"})
        output = storable(await executor.execute(run))
        kept = {"nan": None, "text": "a\ufffdb\ufffd", "keys": {"1": None}}
        # The final state has been through LangGraph's checkpoint, which makes a lone surrogate a "?".
        assert output["final_state"]["node_results"] == {"start": kept | {"text": "a\ufffdb?"}}
        with _connect(dsn) as connection:
            connection.execute("SELECT %s::jsonb", (json.dumps(output),))
        record, steps = _history(dsn, run)
        assert record["status"] == "completed"
        assert record["inputs"] == {"note": "x\ufffdy"}
        assert steps[0] == {"start": {"node_results": {"start": kept}}}

    _play(scenario)


def test_fifty_waiting_runs_take_one_delay_and_few_connections(dsn: str) -> None:
    delay = 2.0

    async def scenario(executor: Executor) -> None:
        first = await _new_run(f"DelayNode(name='start', duration_seconds={delay})")
        runs = [_again(first) for _ in range(50)]
        began = time.monotonic()
        executions = asyncio.gather(*(_execute(executor, run) for run in runs))
        most = 0
        while not executions.done():
            most = max(most, await asyncio.to_thread(_count_connections, dsn))
            await asyncio.wait([executions], timeout=0.1)
        took = time.monotonic() - began
        assert all(output is not None for output in await executions)
        # The history store, the vault and this test's repository have a few of their own.
        assert most <= POOL_SIZE + 6
        assert took < 2.5 * delay

    _play(scenario)


def test_second_attempt_starts_from_the_inputs_and_continues_history(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run(GREET, inputs={"body": {"name": "Ada"}, "messages": [{"role": "user", "content": "hi"}]})
        first = storable(await executor.execute(run))
        second = storable(await executor.execute(_again(run, run_id=run.run_id, attempt=2)))
        assert len(second["final_state"]["messages"]) == len(first["final_state"]["messages"]) == 1
        record, steps = _history(dsn, run)
        assert record["status"] == "completed"
        assert [step.get("status") for step in steps] == [None, "completed", None, "completed"]

    _play(scenario)


def test_runs_of_one_version_share_no_node_state(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        first = await _new_run(COUNT)
        for run in (first, _again(first)):
            output = await executor.execute(run)
            assert output is not None
            assert output["final_state"]["node_results"]["start"] == {"calls": 1}

    _play(scenario)


def test_run_outlasts_connections_that_the_server_closed(dsn: str) -> None:
    async def scenario(executor: Executor) -> None:
        run = await _new_run("DelayNode(name='start', duration_seconds=0.5)")
        before = asyncio.all_tasks()
        execution = asyncio.create_task(_execute(executor, run))
        await _until(lambda: _is_waiting(before), "the workflow to wait")
        with _connect(dsn) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await execution is not None
        assert _history(dsn, run)[0]["status"] == "completed"

    _play(scenario)


def test_sys_exit_in_a_workflow_fails_its_run_alone(dsn: str) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        executor = OrcheoExecutor()
        runner.run(executor.open())
        run = runner.run(_new_run(EXIT))
        execution = loop.create_task(_execute(executor, run))
        # asyncio stops the loop at a SystemExit, once for each task that it passes through, and LangGraph
        # has one in another. A worker starts its loop again each time.
        while not execution.done():
            with contextlib.suppress(SystemExit):
                loop.run_until_complete(asyncio.wait([execution]))
        with pytest.raises(RuntimeError, match=r"sys\.exit\(3\)"):
            execution.result()
        assert _history(dsn, run)[0]["status"] == "error"
        runner.run(_close(executor))


def test_two_processes_open_at_once_on_an_empty_database(
    dsn: str, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", empty_database.dsn)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _OPEN_AND_CLOSE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    with _connect(empty_database.dsn) as connection:
        for table in ("checkpoints", "store", "execution_history_steps", "credentials"):
            assert connection.execute("SELECT to_regclass(%s) AS found", (table,)).fetchone() != {"found": None}
        invalid = connection.execute("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid").fetchall()
        assert invalid == []


def _play(scenario: Scenario) -> None:
    async def play() -> None:
        executor: Any = load_executor("orcheo")
        await executor.open()
        try:
            await scenario(executor)
        finally:
            await _close(executor)

    asyncio.run(play())


async def _close(executor: OrcheoExecutor) -> None:
    await executor.close()
    repository: Any = dependencies.get_repository()
    await repository._pool.close()


async def _execute(executor: Executor, run: Run) -> Any:
    return await executor.execute(run)


async def _new_run(node: str, *, inputs: dict[str, Any] | None = None, workspace_id: str = WORKSPACE) -> Run:
    """Return a run of a new workflow of one node, made as Orcheo's upload makes it."""
    repository = dependencies.get_repository()
    workflow = await repository.create_workflow(
        name="greet",
        slug=None,
        description=None,
        tags=None,
        draft_access=WorkflowDraftAccess.PERSONAL,
        actor="test",
        workspace_id=WORKSPACE,
    )
    version = await repository.create_version(
        workflow.id,
        graph=ingest_langgraph_script(_SCRIPT.format(node=node), entrypoint="build"),
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


def _again(run: Run, *, run_id: str | None = None, attempt: int = 1) -> Run:
    return Run(
        run_id=run_id or str(uuid4()),
        fence=run.fence,
        attempt=attempt,
        workflow_id=run.workflow_id,
        workflow_version_id=run.workflow_version_id,
        workspace_id=run.workspace_id,
        triggered_by=run.triggered_by,
        inputs=run.inputs,
        runnable_config=run.runnable_config,
    )


def _history(dsn: str, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with _connect(dsn) as connection:
        record = connection.execute("SELECT * FROM execution_history WHERE execution_id = %s", (run.run_id,)).fetchone()
        assert record is not None
        steps = connection.execute(
            "SELECT payload FROM execution_history_steps WHERE execution_id = %s ORDER BY step_index", (run.run_id,)
        ).fetchall()
    return record, [step["payload"] for step in steps]


def _count_connections(dsn: str) -> int:
    with _connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*) AS open FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row["open"])


def _connect(dsn: str) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(dsn, autocommit=True, row_factory=dict_row)


def _is_waiting(before: set[asyncio.Task[Any]]) -> bool:
    """Tell whether a task that was not there before waits in a node's own code."""
    return any(
        frame.f_code.co_name == "sleep" or frame.f_code.co_filename.endswith("nodes/logic/utilities.py")
        for task in asyncio.all_tasks() - before
        for frame in _frames(task)
    )


def _frames(task: asyncio.Task[Any]) -> list[Any]:
    frames = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None:
            frames.append(frame)
        awaited = getattr(awaited, "cr_await", None)
    return frames


async def _until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        await asyncio.wait([asyncio.create_task(asyncio.to_thread(lambda: None))], timeout=0.05)
