"""A run that stops at an interrupt waits for an answer if the setting says so, and continues with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.orcheo_stack import ended, ingest, stack_beside, start_afresh
from tests.support.processes.processes import Stack, until

_SCRIPT = (Path(__file__).parent / "workflows" / "failing.py").read_text()
_SHAPES = ("asking", "asking_twice", "asking_at_once")


@pytest.fixture(scope="module")
def stack(orcheo: OrcheoApi) -> Iterator[Stack]:
    """A dispatcher is running; runs wait, and return their slots meanwhile."""
    start_afresh(orcheo)
    found = stack_beside(orcheo)
    found.environment |= {
        "ORCHEO_DISPATCH_INTERRUPTED_RUNS": "wait",
        "ORCHEO_DISPATCH_POLL_INTERVAL": "0.2",
        "ORCHEO_WORKER_HEARTBEAT": "0.5",
        "ORCHEO_WORKER_LEASE": "3",
    }
    with found.running("dispatcher"):
        yield found


@pytest.fixture(scope="module")
def workflows(orcheo: OrcheoApi) -> dict[str, str]:
    """Return the ids of the workflows by shape."""
    return {shape: ingest(orcheo, f"waits {shape}", _SCRIPT, entrypoint=shape) for shape in _SHAPES}


def _started(orcheo: OrcheoApi, workflow_id: str, folder: Path) -> Record:
    (run,) = orcheo.fire_webhooks(workflow_id, [{"folder": str(folder)}])
    return run


def _waits(stack: Stack, run: Record, interrupts: int = 1) -> None:
    until(lambda: _question(stack, run) == interrupts, what="the run waits for an answer")


def _question(stack: Stack, run: Record) -> int:
    rows = everything(
        stack.database, "SELECT interrupts FROM orcheo_dispatch.waiting_runs WHERE run_id = %s", run["id"]
    )
    return rows[0]["interrupts"] if rows else 0


def _answer(stack: Stack, run: Record, answer: Any) -> None:
    with stack.command("answer", run["id"], "--json", json.dumps(answer)) as process:
        assert process.exit_code() == 0, process.log


def _steps(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def _slot(stack: Stack, run: Record) -> str:
    row = one(stack.database, "SELECT slot FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    return str(row["slot"])


def test_run_waits_without_a_process_and_continues_with_the_answer(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        run = _started(orcheo, workflows["asking"], tmp_path)
        _waits(stack, run)
        assert orcheo.run(run["id"])["status"] == "running"
        until(lambda: _slot(stack, run) == "returned", what="its slot is returned while it waits")
    with stack.command("runs", "--waiting", "--json") as process:
        assert process.exit_code() == 0
        (row,) = json.loads(process.log[process.log.index("[") :])
    assert (row["run_id"], row["interrupts"], row["status"]) == (run["id"], 1, "running")
    with stack.command("requeue", run["id"]) as process:
        assert process.exit_code() == 1
        assert "run waits for an answer" in process.log
    _answer(stack, run, {"text": "go on"})
    with stack.running("worker"):
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["node_results"]["ask"]["response"] == {"text": "go on"}
    assert _steps(tmp_path) == ["a", "c"]
    assert [each["action"] for each in seen["audit_log"]][-5:] == [
        "run_started",
        "run_waiting",
        "run_answered",
        "run_started",
        "run_succeeded",
    ]
    record = one(stack.database, "SELECT status FROM execution_history WHERE execution_id = %s", run["id"])
    assert record["status"] == "completed"
    with stack.command("answer", run["id"], "--json", "1") as process:
        assert process.exit_code() == 1
        assert "does not wait" in process.log


def test_answer_of_a_run_whose_worker_is_lost_is_given_to_the_same_interrupt(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as worker:
        run = _started(orcheo, workflows["asking"], tmp_path)
        _waits(stack, run)
        worker.signal(Signals.SIGKILL)
        worker.exit_code()
    with psycopg.connect(stack.database.dsn) as connection:
        connection.execute("SELECT orcheo_dispatch.answer(%s, %s)", (run["id"], '"yes"'))
    with stack.running("worker"):
        seen = ended(orcheo, run)
    assert seen["output_payload"]["final_state"]["node_results"]["ask"]["response"] == "yes"


@pytest.mark.parametrize("rule", ["fail", "requeue"])
def test_run_continues_with_the_answer_although_lost_runs_no_longer_resume(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path, rule: str
) -> None:
    with stack.running("worker"):
        run = _started(orcheo, workflows["asking"], tmp_path)
        _waits(stack, run)
    _answer(stack, run, "yes")
    # Only under `resume` may runs wait.
    settings = {"ORCHEO_DISPATCH_LOST_RUNS": rule, "ORCHEO_DISPATCH_INTERRUPTED_RUNS": "succeed"}
    with stack.running("worker", **settings):
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["node_results"]["ask"]["response"] == "yes"
    assert _steps(tmp_path) == ["a", "c"]


def test_step_that_asks_twice_gets_both_answers(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        run = _started(orcheo, workflows["asking_twice"], tmp_path)
        for number in (1, 2):
            _waits(stack, run)
            _answer(stack, run, number)
            until(lambda: _attempts(stack, run) == number + 1, what="it continues")  # noqa: B023
        seen = ended(orcheo, run)
    assert seen["output_payload"]["final_state"]["node_results"]["ask"]["answers"] == [1, 2]


def _attempts(stack: Stack, run: Record) -> int:
    row = one(stack.database, "SELECT attempts FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    return int(row["attempts"])


def test_parallel_questions_are_answered_by_the_ids_of_their_interrupts(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        run = _started(orcheo, workflows["asking_at_once"], tmp_path)
        _waits(stack, run, 2)
        with stack.command("answer", run["id"], "--json", '"one for both"') as process:
            assert process.exit_code() == 1
        asked = orcheo.run(run["id"])["output_payload"]["interrupts"]
        _answer(stack, run, {each["id"]: f"to {each['value']['message']}" for each in asked})
        seen = ended(orcheo, run)
    results = seen["output_payload"]["final_state"]["node_results"]
    assert (results["left"]["response"], results["right"]["response"]) == ("to left", "to right")
    assert sorted(_steps(tmp_path)) == ["a", "c"]


@pytest.mark.parametrize("by", ["operator", "api"])
def test_run_that_is_cancelled_while_it_waits_ends_and_returns_its_slot(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path, by: str
) -> None:
    with stack.running("worker", ORCHEO_DISPATCH_INTERRUPTED_RUNS="wait_with_slot"):
        run = _started(orcheo, workflows["asking"], tmp_path)
        _waits(stack, run)
        assert _slot(stack, run) == "held"
    if by == "api":
        orcheo.cancel(run["id"])
    else:
        with stack.command("cancel", run["id"]) as process:
            assert process.exit_code() == 0
    # The upkeep of a dispatcher that starts does its first round at once.
    with stack.running("dispatcher"):
        until(lambda: _slot(stack, run) == "returned", what="its slot is returned")
    assert orcheo.run(run["id"])["status"] == "cancelled"
    assert not everything(stack.database, "SELECT FROM orcheo_dispatch.question WHERE run_id = %s", run["id"])
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        execute(stack.database, "SELECT orcheo_dispatch.answer(%s, '1')", run["id"])
