"""Another release of Orcheo or LangGraph, one thing changed at a time: what a worker does, and what `check` says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from orcheo_backend.app.dependencies import get_repository

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment
from orcheo_dispatch.shared.errors import SchemaError
from orcheo_dispatch.shared.health.probe import READY, ask
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor
from orcheo_dispatch.worker.orcheo.saving.outbox import Outbox
from orcheo_dispatch.worker.orcheo.saving.own_saver import OwnSaver
from orcheo_dispatch.worker.settle.failing import STREAK_RUNS
from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, everything, execute, insert_runs, statuses
from tests.support.orcheo.executions import another, history, new_run, play
from tests.support.processes.changed_libraries import AT_START, changing, hidden
from tests.support.processes.processes import Process, Stack, until
from tests.support.runners.local_outside import LocalExecutor

# All that a worker may need to say what is wrong, the import of Orcheo on a busy machine included.
_SECONDS = 120.0
_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "execution_history", "execution_history_steps")
_REMEDY = "pip install --upgrade 'orcheo-dispatch[orcheo]'"

_OTHER_LOADER = """
def load_graph_from_script(source, *, entry=None, limits=None):
    raise AssertionError("never called")
"""
_LOADER_THAT_FAILS_LATER = """
_loads = load_graph_from_script
def load_graph_from_script(source, *, execution_timeout_seconds=60.0, **other):
    if execution_timeout_seconds is None:
        raise ValueError("a time limit is needed")
    return _loads(source, execution_timeout_seconds=execution_timeout_seconds, **other)
"""
_NEWER_SAVER = """
BasePostgresSaver.UPSERT_CHECKPOINT_BLOBS_SQL = '''
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob, codec)
    VALUES (%s, %s, %s, %s, %s, %s, 'new') ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING'''
"""
_NEWER_LANGGRAPH = """
import importlib.metadata
_version = importlib.metadata.version
importlib.metadata.version = lambda name: "9.1.0" if name == "langgraph" else _version(name)
"""


class _Installation:
    """Our processes on a database with one workflow, where a library is another release."""

    def __init__(self, database: Database, redis_url: str, folder: Path) -> None:
        self.database = database
        self._folder = folder
        self._stack = Stack(database, redis_url, folder / "side-effects")
        self._stack.environment |= orcheo_environment(database.dsn, redis_url, folder)
        self._stack.environment["ORCHEO_WORKER_EXECUTOR"] = "orcheo"
        self._plain = dict(self._stack.environment)
        self._run = asyncio.run(_made())

    def change(self, changes: dict[str, str]) -> None:
        """Have every process that starts from now on import changed modules."""
        self._stack.environment = changing(self._folder, self._plain, changes)

    def worker(self, **variables: str) -> Process:
        """Start a worker."""
        return self._stack.command("worker", **variables)

    def check(self, *, expect: int) -> dict[str, Any]:
        """Return what `check --for worker` finds, by subject."""
        arguments = ["check", "--for", "worker", "--json"]
        with self._stack.command(*arguments, ORCHEO_POSTGRES_DSN=self.database.dsn + "?") as process:
            assert process.exit_code(seconds=_SECONDS) == expect, process.log
            process.finish()
        return {finding["what"]: finding for finding in json.loads(process.log)}

    def publish(self, runs: int) -> None:
        """Insert runs and have them published."""
        insert_runs(
            self.database,
            runs,
            workflow_id=self._run.workflow_id,
            version_id=self._run.workflow_version_id,
            workspace_id=self._run.workspace_id,
        )
        with self._stack.command("poll") as poll:
            assert poll.exit_code() == 0, poll.log

    def finish(self, runs: int, *, status: str = "succeeded") -> None:
        """Have a worker that is running execute runs, and expect this of all of them."""
        self.publish(runs)
        until(lambda: all_ended(self.database), what="all runs have ended")
        assert statuses(self.database) == {status}


async def _made() -> Any:
    try:
        return await new_run("greet")
    finally:
        await cast("Any", get_repository()).close()


@pytest.fixture
def installation(orcheo_here: Database, redis_url: str, tmp_path: Path) -> _Installation:
    """An installation of the test's own."""
    return _Installation(orcheo_here, redis_url, tmp_path)


def _refusal(worker: Process, code: int) -> str:
    assert worker.exit_code(seconds=_SECONDS) == code, worker.log
    worker.finish()
    assert "Traceback" not in worker.log
    (line,) = [line for line in worker.lines if line.startswith("orcheo-dispatch:")]
    return line


def _started(worker: Process) -> None:
    worker.saw("worker_started", seconds=_SECONDS)


@pytest.mark.parametrize(
    ("module", "name", "release"),
    [
        ("orcheo.tracing", "split_subgraph_update", "orcheo 0."),
        ("orcheo_backend.app.dependencies", "get_vault", "orcheo-backend 0."),
        ("langgraph.checkpoint.base", "get_checkpoint_id", "langgraph-checkpoint "),
    ],
)
def test_name_that_a_worker_needs_is_gone(installation: _Installation, module: str, name: str, release: str) -> None:
    installation.change(hidden(module, name, from_package="orcheo_dispatch.worker."))
    with installation.worker() as worker:
        line = _refusal(worker, 2)
    assert release in line
    assert f"{module}.{name}" in line
    assert _REMEDY in line
    finding = installation.check(expect=2)["Orcheo's interfaces"]
    assert finding["grade"] == "wrong"
    assert f"{module}.{name}" in finding["found"]
    assert finding["mend"] == _REMEDY


def test_function_takes_other_arguments(installation: _Installation) -> None:
    installation.change({"orcheo.graph.ingestion": _OTHER_LOADER})
    with installation.worker() as worker:
        line = _refusal(worker, 2)
    assert "load_graph_from_script cannot be called" in line
    assert "entrypoint" in line
    assert "load_graph_from_script" in installation.check(expect=2)["Orcheo's interfaces"]["found"]


def test_import_that_fails_inside_orcheo_is_one_line(installation: _Installation) -> None:
    installation.change({"orcheo.vault": "raise RuntimeError('postgresql://ada:hunter2@db/x')"})
    with installation.worker() as worker:
        line = _refusal(worker, 2)
    assert "Orcheo cannot be imported: RuntimeError" in line
    assert "hunter2" not in worker.log
    assert "RuntimeError" in installation.check(expect=2)["Orcheo's interfaces"]["found"]


def test_second_way_of_building_a_graph_fails(installation: _Installation) -> None:
    installation.change({"orcheo.graph.ingestion": _LOADER_THAT_FAILS_LATER})
    with installation.worker() as worker:
        line = _refusal(worker, 2)
    assert "built-in workflow failed, second build: ValueError at" in line
    assert "time limit" not in line


def test_private_name_of_langgraph_is_gone(installation: _Installation) -> None:
    installation.change(
        hidden("langgraph.checkpoint.serde.types", "_DeltaSnapshot", from_package="orcheo_dispatch.worker.")
    )
    with installation.worker() as worker:
        _started(worker)
        worker.saw("checkpoints_by_langgraph")
        installation.finish(3)
    assert worker.log.count("checkpoints_by_langgraph") == 1
    assert len(everything(installation.database, "SELECT DISTINCT thread_id FROM checkpoints")) == 3
    finding = installation.check(expect=0)["checkpoints"]
    assert finding["grade"] == "warn"
    assert "_DeltaSnapshot" in finding["found"]


def test_release_outside_the_tested_ones_is_said_and_used(installation: _Installation) -> None:
    installation.change({AT_START: _NEWER_LANGGRAPH})
    with installation.worker() as worker:
        _started(worker)
        worker.saw("releases_untested")
        installation.finish(1)
    assert "langgraph 9.1.0" in worker.log
    finding = installation.check(expect=0)["Orcheo"]
    assert finding["grade"] == "warn"
    assert "langgraph 9.1.0 (tested: " in finding["mend"]


def test_langgraph_has_migrated_its_tables_further(installation: _Installation) -> None:
    execute(installation.database, "INSERT INTO checkpoint_migrations VALUES (10)")
    execute(installation.database, "ALTER TABLE checkpoint_blobs ADD COLUMN codec text NOT NULL")
    installation.change({"langgraph.checkpoint.postgres.base": _NEWER_SAVER})
    with installation.worker() as worker:
        _started(worker)
        worker.saw("checkpoints_by_langgraph")
        installation.finish(2)
    assert "requires the unknown column codec" in worker.log
    blobs = everything(installation.database, "SELECT DISTINCT thread_id, codec FROM checkpoint_blobs")
    assert [row["codec"] for row in blobs] == ["new", "new"]
    found = installation.check(expect=0)["tables of checkpoints"]["found"]
    assert found == "checkpoint_blobs requires the unknown column codec; checkpoint_migrations is at 10, known up to 9"


def test_checkpoint_that_nobody_can_store_costs_no_run_its_result(installation: _Installation) -> None:
    with installation.worker() as worker:
        _started(worker)
        # Under the worker's feet: what it looked at before is no longer so.
        execute(installation.database, "ALTER TABLE checkpoint_blobs ADD COLUMN codec text NOT NULL")
        installation.finish(2)
        worker.saw("checkpoint_not_written")
    with installation.worker() as worker:
        _started(worker)
        worker.saw("checkpoints_not_stored")
        installation.finish(1)
        worker.saw("checkpoint_not_written")
    steps = everything(
        installation.database, "SELECT payload FROM execution_history_steps WHERE payload ? 'checkpoint'"
    )
    assert len(steps) == 3
    assert {step["payload"]["checkpoint"]["error"] for step in steps} == {
        "The checkpoint of this run could not be stored: NotNullViolation."
    }
    records = everything(installation.database, "SELECT status FROM execution_history")
    assert [record["status"] for record in records] == ["completed"] * 3


def test_worker_says_at_once_which_column_it_misses(installation: _Installation) -> None:
    execute(installation.database, "ALTER TABLE workflow_versions RENAME COLUMN payload TO content")
    with installation.worker() as worker:
        line = _refusal(worker, 3)
    assert "workflow_versions has no column payload" in line
    assert "orcheo-backend 0." in line
    finding = installation.check(expect=3)["Orcheo's columns"]
    assert finding["found"] == "workflow_versions has no column payload"


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workflows RENAME COLUMN is_archived TO archived",
        "ALTER TABLE workflows ALTER COLUMN workspace_id TYPE uuid USING workspace_id::uuid",
        "ALTER TABLE checkpoints RENAME COLUMN thread_id TO thread",
        "ALTER TABLE execution_history RENAME COLUMN execution_id TO run_id",
    ],
)
def test_tables_without_which_nothing_can_run_are_refused(orcheo_here: Database, change: str) -> None:
    execute(orcheo_here, change)

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await OrcheoExecutor().open()

    with pytest.raises(SchemaError, match=r"has no column|instead of text"):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "stores_checkpoint", "stores_trace"),
    [
        ("ALTER TABLE checkpoint_writes RENAME COLUMN task_path TO path", True, True),
        ("ALTER TABLE checkpoints RENAME COLUMN metadata TO meta", False, True),
        ("ALTER TABLE execution_history RENAME COLUMN inputs TO input", True, False),
        ("ALTER TABLE execution_history_steps ADD COLUMN kind text NOT NULL", True, False),
        ("ALTER TABLE checkpoints ADD COLUMN tenant text", True, True),
    ],
)
def test_what_cannot_be_stored_is_left_out(
    orcheo_here: Database, change: str, stores_checkpoint: bool, stores_trace: bool
) -> None:
    execute(orcheo_here, change)

    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        for each in (run, another(run)):
            output = await executor.execute(each)
            assert output is not None
            assert "greeting" in output["final_state"]["node_results"]["start"]
            stored = everything(orcheo_here, "SELECT FROM checkpoints WHERE thread_id = %s", each.run_id)
            assert bool(stored) == stores_checkpoint
            if stores_trace:
                assert history(orcheo_here, each)[0]["status"] == "completed"

    play(scenario)


def test_worker_whose_runs_all_fail_of_the_platform_is_not_ready(installation: _Installation) -> None:
    port = free_port()

    def why() -> str | None:
        ok, answer = ask("127.0.0.1", port, READY)
        checks = json.loads(answer)["checks"]
        return None if ok else next((check["why"] for check in checks if check["name"] == "runs"), None)

    with installation.worker(ORCHEO_HEALTH_PORT=str(port)) as worker:
        _started(worker)
        until(lambda: ask("127.0.0.1", port, READY)[0], what="the worker is ready")
        execute(installation.database, "ALTER TABLE workflow_versions RENAME COLUMN updated_at TO changed_at")
        installation.finish(STREAK_RUNS, status="failed")
        worker.saw("runs_failing")
        told = why()
        assert told is not None
        assert f"the last {STREAK_RUNS} runs failed with UndefinedColumn at " in told
        assert "worker/books/" in told
        execute(installation.database, "ALTER TABLE workflow_versions RENAME COLUMN changed_at TO updated_at")
        execute(installation.database, "DELETE FROM workflow_runs")
        installation.finish(1)
        worker.saw("runs_recovered")
        assert ask("127.0.0.1", port, READY)[0]
    assert worker.log.count("runs_failing") == 1


def test_rows_that_langgraph_reads_otherwise_are_left_to_its_own_saver(
    orcheo_here: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a release would that keeps its values elsewhere.
    monkeypatch.setattr(AsyncPostgresSaver, "_load_blobs", lambda *_: {})

    async def scenario(executor: LocalExecutor) -> None:
        attached = executor.inner._attached
        assert attached is not None
        outbox = Outbox(executor.outside, Claim("a run", 1))
        assert isinstance(attached.services.make_saver("a run", outbox), OwnSaver)
        output = await executor.execute(await new_run("greet"))
        assert output is not None
        assert "greeting" in output["final_state"]["node_results"]["start"]

    play(scenario)


@pytest.mark.parametrize("migration", [9, 10])
def test_built_in_workflow_leaves_no_rows(orcheo_here: Database, migration: int) -> None:
    execute(orcheo_here, "INSERT INTO checkpoint_migrations VALUES (%s) ON CONFLICT DO NOTHING", migration)

    async def scenario(executor: LocalExecutor) -> None:
        with psycopg.connect(orcheo_here.dsn) as connection:
            for table in _TABLES:
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)

    play(scenario)
