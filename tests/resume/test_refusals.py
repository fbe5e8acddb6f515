"""Runs that must not continue: what ended, changed or moved while their worker was lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.resume.ground import SCRIPT, hold_in
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.orcheo_stack import ended, ingest
from tests.support.processes.processes import Stack, until


@pytest.fixture
def workflow(orcheo: OrcheoApi) -> str:
    """A workflow of its own: the test changes it."""
    return ingest(orcheo, f"resume refusals {uuid4().hex[:6]}", SCRIPT, entrypoint="chain")


@contextmanager
def _lost(orcheo: OrcheoApi, stack: Stack, workflow: str, folder: Path) -> Iterator[Record]:
    """Yield a run whose worker was killed in step b, after a was stored; it is reaped only after the block."""
    hold_in(folder, "b 1").touch()
    with stack.running("worker", ORCHEO_WORKER_LEASE="8", ORCHEO_WORKER_HEARTBEAT="0.5") as worker:
        (run,) = orcheo.fire_webhooks(workflow, [{"folder": str(folder)}])
        until(lambda: "begin b 1" in _lines(folder), what="the run is in step b")
        worker.signal(Signals.SIGKILL)
        worker.exit_code()
    yield run
    hold_in(folder, "b 1").unlink()


def _lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def _begun_once(folder: Path) -> bool:
    return [line for line in _lines(folder) if line.startswith("begin")] == ["begin a 1", "begin b 1"]


def _slots(stack: Stack) -> int:
    """Return how many run slots are taken, of all workspaces."""
    with redis.Redis.from_url(stack.environment["ORCHEO_REDIS_URL"]) as client:
        return sum(int(client.get(key) or 0) for key in client.keys("orcheo:workspace:runs:*"))


def _is_over(stack: Stack, run: Record) -> bool:
    row = one(stack.database, "SELECT state, slot FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    return (row["state"], row["slot"]) == ("settled", "returned")


@pytest.mark.parametrize("by", ["api", "operator"])
def test_run_that_is_cancelled_while_its_worker_is_lost_never_continues(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path, by: str
) -> None:
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        if by == "api":
            orcheo.cancel(run["id"])
        else:
            with stack.command("cancel", run["id"]) as process:
                assert process.exit_code() == 0, process.log
    with stack.running("worker"):
        until(lambda: _is_over(stack, run), what="the run is over")
        (other,) = orcheo.fire_webhooks(workflow, [{"folder": str(_folder(tmp_path))}])
        assert ended(orcheo, other)["status"] == "succeeded", "the worker executes what comes later"
    assert orcheo.run(run["id"])["status"] == "cancelled"
    assert _begun_once(tmp_path)
    until(lambda: _slots(stack) == 0, what="all slots are returned")


def _folder(parent: Path) -> Path:
    made = parent / uuid4().hex
    made.mkdir()
    return made


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_run_that_was_ended_elsewhere_while_its_worker_was_lost_is_not_resurrected(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path, status: str
) -> None:
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        execute(
            stack.database,
            "UPDATE workflow_runs SET status = %s, payload = payload || jsonb_build_object('status', %s::text)"
            " WHERE id = %s",
            status,
            status,
            run["id"],
        )
    with stack.running("worker"):
        until(lambda: _is_over(stack, run), what="the run is over")
    assert orcheo.run(run["id"])["status"] == status
    assert _begun_once(tmp_path)
    until(lambda: _slots(stack) == 0, what="all slots are returned")


def test_run_of_a_workflow_that_was_archived_meanwhile_is_cancelled(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        orcheo.archive(workflow)
    with stack.running("worker"):
        assert ended(orcheo, run)["status"] == "cancelled"
    assert _begun_once(tmp_path)


def test_run_whose_workflow_was_moved_to_another_workspace_does_not_continue(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        execute(stack.database, "UPDATE workflows SET workspace_id = %s WHERE id = %s", str(uuid4()), workflow)
    with stack.running("worker"):
        until(lambda: _is_over(stack, run), what="the run is over")
    row = one(stack.database, "SELECT status FROM workflow_runs WHERE id = %s", run["id"])
    assert row["status"] == "cancelled"
    assert _begun_once(tmp_path)


_CHANGE = """
UPDATE workflow_versions
   SET updated_at = now(),
       payload = jsonb_set(payload, '{graph,source}', to_jsonb(replace(payload #>> '{graph,source}', %s, %s)))
 WHERE id = (SELECT workflow_version_id FROM workflow_runs WHERE id = %s)
"""


def test_run_whose_graph_was_changed_in_place_fails_for_good_and_can_be_started_over(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    """Its checkpoints are those of another graph: a step may be missing in it, or mean something else."""
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        execute(stack.database, _CHANGE, 'names = ("a", "b", "c", "d")', 'names = ("a", "b", "e")', run["id"])
    with stack.running("worker"):
        seen = ended(orcheo, run)
        assert seen["status"] == "failed"
        assert "was changed after this run had begun" in seen["error"]
        assert _begun_once(tmp_path)
        with stack.command("requeue", "--from-start", run["id"]) as process:
            assert process.exit_code() == 0, process.log
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert [*seen["output_payload"]["final_state"]["node_results"]] == ["a", "b", "e"]


def test_change_of_a_version_that_leaves_its_graph_alone_does_not_end_its_runs(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        execute(
            stack.database,
            "UPDATE workflow_versions SET updated_at = now(), payload = jsonb_set(payload, '{notes}', '\"renamed\"')"
            " WHERE workflow_id = %s",
            workflow,
        )
    with stack.running("worker"):
        assert ended(orcheo, run)["status"] == "succeeded"
    begun = [line for line in _lines(tmp_path) if line.startswith("begin")]
    assert begun == ["begin a 1", "begin b 1", "begin b 1", "begin c 1", "begin d 1"]


def test_slot_of_a_run_that_is_lost_twice_is_returned_once(
    orcheo: OrcheoApi, stack: Stack, workflow: str, tmp_path: Path
) -> None:
    until(lambda: _slots(stack) == 0, what="the slots of earlier tests are returned")
    folder = _folder(tmp_path)
    hold_in(folder, "b 1").touch()
    with stack.running("worker"):
        (other,) = orcheo.fire_webhooks(workflow, [{"folder": str(folder)}])
        until(lambda: "begin b 1" in _lines(folder), what="the other run is in step b")
    assert _slots(stack) == 1
    with _lost(orcheo, stack, workflow, tmp_path) as run:
        assert _slots(stack) == 2
        with stack.running("worker") as worker:
            until(lambda: _lines(tmp_path).count("begin b 1") == 2, what="it continues")
            assert _slots(stack) == 2
            worker.signal(Signals.SIGKILL)
            worker.exit_code()
    with stack.running("worker"):
        assert ended(orcheo, run)["status"] == "succeeded"
        until(lambda: _slots(stack) == 1, what="its slot is returned")
        hold_in(folder, "b 1").unlink()
        assert ended(orcheo, other)["status"] == "succeeded"
        until(lambda: _slots(stack) == 0, what="all slots are returned")
        query = "SELECT run_id FROM orcheo_dispatch.dispatch WHERE slot <> 'returned'"
        until(lambda: not everything(stack.database, query), what="the ledger has it")
