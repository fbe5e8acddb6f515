"""What a run leaves behind in its process is seen by no run of another workspace."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs, insert_workflow, read_run
from tests.support.processes.processes import Stack, until


@pytest.fixture
def playing(stack: Stack) -> Stack:
    """Processes whose runs do what `tests.neighbours.acts` offers."""
    stack.environment |= {"ORCHEO_WORKER_EXECUTOR": "tests.neighbours.acts:play"}
    return stack


def _insert(database: Database, workspace: str, do: str) -> str:
    workflow = str(uuid4())
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        insert_workflow(connection, workflow, owner=workspace)
    (run,) = insert_runs(
        database, workspace_id=workspace, workflow_id=workflow, version_id=str(uuid4()), inputs={"do": do}
    )
    return run


def _seen(database: Database, run: str) -> dict[str, object]:
    seen: dict[str, object] = read_run(database, run)["payload"]["output_payload"]["final_state"]
    return seen


@pytest.mark.parametrize("isolation", ["adaptive", "shared", "process"])
def test_traces_of_a_run_reach_no_other_workspace(database: Database, playing: Stack, isolation: str) -> None:
    one, other = str(uuid4()), str(uuid4())
    with (
        playing.running("dispatcher"),
        playing.running("worker", ORCHEO_WORKER_ISOLATION=isolation, ORCHEO_WORKER_PROCESSES="1"),
    ):
        first = _insert(database, other, "see")
        until(lambda: all_are(database, "succeeded"), what="a run sees a clean process")
        clean = _seen(database, first)
        assert (clean["key"], clean["module"], clean["builtin"]) == (None, False, False)
        tainting = _insert(database, one, "taint")
        until(lambda: read_run(database, tainting)["status"] == "running", what="the run leaves its traces")
        # While it runs, and after it, in processes that were there before and in those that were made since.
        beside = [_insert(database, other, "see") for _ in range(3)]
        until(lambda: all(read_run(database, run)["status"] == "succeeded" for run in beside), what="others see")
        until(lambda: all_are(database, "succeeded"), what="the run has ended")
        after = [_insert(database, str(uuid4()), "see") for _ in range(3)]
        until(lambda: all_are(database, "succeeded"), what="others see")
        assert [_seen(database, run) for run in (*beside, *after)] == [clean] * 6
        again = _insert(database, one, "see")
        until(lambda: read_run(database, again)["status"] == "succeeded", what="its own workspace sees")
        # So the traces were there to be seen, where the process is shared.
        assert (_seen(database, again) == clean) == (isolation == "process")
