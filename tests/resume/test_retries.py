"""A failed run is tried again as the retry policy of its workflow says, from the step that failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.orcheo_stack import ended, ingest, stack_beside, start_afresh
from tests.support.processes.processes import Stack, until

_SCRIPT = (Path(__file__).parent / "workflows" / "failing.py").read_text()


@pytest.fixture(scope="module")
def stack(orcheo: OrcheoApi) -> Iterator[Stack]:
    """A worker is running."""
    start_afresh(orcheo)
    found = stack_beside(orcheo)
    found.environment |= {"ORCHEO_DISPATCH_POLL_INTERVAL": "0.2"}
    with found.running("worker"):
        yield found


@pytest.fixture
def workflow(orcheo: OrcheoApi, stack: Stack) -> str:
    """Return the id of a workflow without a policy."""
    return ingest(orcheo, "fails", _SCRIPT, entrypoint="failing")


def _set_policy(stack: Stack, workflow_id: str, **policy: object) -> None:
    """Store a policy as the API's repository does."""
    config = {"initial_delay_seconds": 1.0, "backoff_factor": 2.0, "jitter_factor": 0.0, **policy}
    execute(
        stack.database,
        "INSERT INTO retry_policies (workflow_id, config) VALUES (%s, %s)",
        workflow_id,
        json.dumps(config),
    )


def _failed(orcheo: OrcheoApi, workflow_id: str, folder: Path, error: str = "ValueError") -> Record:
    """Start a run whose step b fails, and return it when it has failed."""
    (folder / "fail-b").write_text(error)
    (run,) = orcheo.fire_webhooks(workflow_id, [{"folder": str(folder)}])
    until(lambda: orcheo.run(run["id"])["status"] == "failed", what="the run fails")
    return orcheo.run(run["id"])


def _steps(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def _retry(stack: Stack, run: Record) -> list[dict[str, object]]:
    return everything(
        stack.database,
        "SELECT retries, next_at, extract(epoch FROM next_at - settled_at)::float8 AS delay FROM orcheo_dispatch.retry"
        " JOIN orcheo_dispatch.dispatch USING (run_id) WHERE run_id = %s",
        run["id"],
    )


def _listed(stack: Stack, view: str, run: Record) -> bool:
    return bool(everything(stack.database, f"SELECT FROM orcheo_dispatch.{view} WHERE run_id = %s", run["id"]))


def _runs(stack: Stack, *options: str) -> list[str]:
    with stack.command("runs", *options, "--json") as process:
        assert process.exit_code() == 0, process.log
        return [row["run_id"] for row in json.loads(process.log[process.log.index("[") :])]


def test_failed_run_is_tried_again_from_the_failed_step_and_succeeds(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    _set_policy(stack, workflow, initial_delay_seconds=3.0)
    with stack.running("dispatcher"):
        run = _failed(orcheo, workflow, tmp_path)
        metadata = run["audit_log"][-1]["metadata"]
        assert metadata["retry"] == 1
        assert metadata["retry_at"] > run["completed_at"]
        (tmp_path / "fail-b").unlink()
        until(lambda: orcheo.run(run["id"])["status"] == "succeeded", what="the run succeeds")
    seen = orcheo.run(run["id"])
    assert seen["error"] is None
    assert _steps(tmp_path) == ["a", "b", "b", "c"]
    assert "run_retried" in [each["action"] for each in seen["audit_log"]]
    record = one(stack.database, "SELECT status, error FROM execution_history WHERE execution_id = %s", run["id"])
    assert (record["status"], record["error"]) == ("completed", None)
    slot = one(stack.database, "SELECT slot FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    assert slot["slot"] == "returned"


def test_delays_grow_and_what_is_out_of_attempts_is_dead_and_can_be_requeued(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    _set_policy(stack, workflow, max_attempts=3)
    delays = []
    with stack.running("dispatcher"):
        run = _failed(orcheo, workflow, tmp_path)
        for number in (1, 2):
            (retry,) = _retry(stack, run)
            assert retry["retries"] == number
            delays.append(round(float(str(retry["delay"])), 1))
            assert _listed(stack, "retrying_runs", run)
            assert not _listed(stack, "dead_runs", run)
            until(lambda: _steps(tmp_path).count("b") == number + 1, what="the next attempt")  # noqa: B023
            until(lambda: orcheo.run(run["id"])["status"] == "failed", what="it fails again")
        assert delays == [1.0, 2.0]
        assert _runs(stack, "--dead", "--workflow", workflow) == [run["id"]]
        (tmp_path / "fail-b").unlink()
        with stack.command("requeue", "--dead", "--workflow", workflow, "--from-start", "--yes") as process:
            assert process.exit_code() == 0, process.log
        assert ended(orcheo, run)["status"] == "succeeded"
    assert _steps(tmp_path) == ["a", "b", "b", "b", "a", "b", "c"]


@pytest.mark.parametrize("error", ["SyntaxError"])
def test_error_that_another_attempt_would_repeat_is_final(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path, error: str
) -> None:
    _set_policy(stack, workflow)
    with stack.running("dispatcher"):
        run = _failed(orcheo, workflow, tmp_path, error)
    assert _retry(stack, run) == []
    assert _runs(stack, "--dead", "--workflow", workflow) == [run["id"]]


@pytest.mark.parametrize(("retries", "steps"), [("start", ["a", "b", "a", "b", "c"]), ("off", ["a", "b"])])
def test_setting_says_where_a_retry_starts(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path, retries: str, steps: list[str]
) -> None:
    _set_policy(stack, workflow, initial_delay_seconds=3.0)
    variables = {"ORCHEO_DISPATCH_RETRIES": retries}
    stack_here = stack_beside(orcheo)
    stack_here.environment |= stack.environment | variables | {"ORCHEO_DISPATCH_QUEUE": f"retries-{retries}"}
    with stack_here.running("worker"), stack_here.running("dispatcher"):
        run = _failed(orcheo, workflow, tmp_path)
        assert len(_retry(stack, run)) == (retries == "start")
        if retries == "start":
            (tmp_path / "fail-b").unlink()
            until(lambda: orcheo.run(run["id"])["status"] == "succeeded", what="the run succeeds")
    assert _steps(tmp_path) == steps


@pytest.mark.parametrize("action", ["fail", "cancel"])
def test_operator_prevents_a_scheduled_retry(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path, action: str
) -> None:
    _set_policy(stack, workflow, initial_delay_seconds=600.0)
    with stack.running("dispatcher"):
        run = _failed(orcheo, workflow, tmp_path)
        options = ("--reason", "enough") if action == "fail" else ()
        with stack.command(action, run["id"], *options) as process:
            assert process.exit_code() == 0, process.log
        assert _runs(stack, "--retrying") == []
    (retry,) = _retry(stack, run)
    assert retry["next_at"] is None
    assert orcheo.run(run["id"])["status"] == ("failed" if action == "fail" else "cancelled")
