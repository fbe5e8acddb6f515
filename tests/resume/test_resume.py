"""A run continues on another worker after its last finished step, whatever became of the worker that executed it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.orcheo_stack import ended, ingest
from tests.support.processes.processes import Process, Stack, until

_SCRIPT = (Path(__file__).parent / "workflows" / "steps.py").read_text()
_STEPS = {
    "chain": ["a 1", "b 1", "c 1", "d 1"],
    "loop": ["a 1", "a 2", "a 3", "a 4", "b 1"],
    "branches": ["start 1", "a 1", "b 1", "c 1", "join 1"],
    "subgraph": ["a 1", "b 1", "c 1", "d 1", "e 1"],
}
# Each needs the start of two workers: `make resume` tries all.
_ALL = [(shape, step) for shape, steps in _STEPS.items() for step in steps]
_SHORT = [("chain", "d 1"), ("loop", "a 3"), ("branches", "b 1"), ("subgraph", "c 1")]
_CASES = _ALL if os.environ.get("TEST_RESUME") == "all" else _SHORT

# Tasks with writes that belong to the last checkpoint.
_WRITTEN = """
SELECT count(DISTINCT w.task_id) AS tasks
  FROM (SELECT max(checkpoint_id) AS id FROM checkpoints WHERE thread_id = %s AND checkpoint_ns = '') AS last
  JOIN checkpoint_writes AS w ON w.checkpoint_id = last.id
"""


@pytest.fixture(scope="module")
def workflows(orcheo: OrcheoApi) -> dict[str, str]:
    """Return the ids of the workflows by shape."""
    return {shape: ingest(orcheo, f"resume {shape}", _SCRIPT, entrypoint=shape) for shape in (*_STEPS, "asking")}


@contextmanager
def _held(orcheo: OrcheoApi, workflow_id: str, folder: Path, step: str) -> Iterator[Record]:
    """Start a run that waits in this step, until the block ends."""
    hold = folder / f"hold-{step.replace(' ', '-')}"
    hold.touch()
    (run,) = orcheo.fire_webhooks(workflow_id, [{"folder": str(folder)}])
    until(lambda: f"begin {step}" in _lines(folder), what=f"the run is in step {step}")
    yield run
    hold.unlink()


def _lines(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def _stored(stack: Stack, run: Record, folder: Path, shape: str, step: str) -> None:
    """Wait until the branches beside the held step have ended and their writes are in the tables."""
    beside = {"a 1", "b 1", "c 1"} - {step} if shape == "branches" and step not in ("start 1", "join 1") else set()
    until(lambda: beside <= {line.removeprefix("end ") for line in _lines(folder)}, what="the other branches end")
    until(lambda: one(stack.database, _WRITTEN, run["id"])["tasks"] >= len(beside), what="their writes are stored")


def _check(orcheo: OrcheoApi, stack: Stack, run: Record, folder: Path, workflow_id: str, shape: str, step: str) -> None:
    seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    begun = Counter(line.removeprefix("begin ") for line in _lines(folder) if line.startswith("begin"))
    assert begun == {each: 2 if each == step else 1 for each in _STEPS[shape]}
    assert _state(seen) == _state(_undisturbed(orcheo, workflow_id, folder))
    row = one(
        stack.database, "SELECT attempts, refunded, slot FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"]
    )
    assert row["attempts"] == 2
    until(
        lambda: (
            one(stack.database, "SELECT slot FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])["slot"]
            == "returned"
        ),
        what="the run slot is returned",
    )
    steps = [each["payload"] for each in _trace(stack, run)]
    assert sum("resumed" in payload for payload in steps) == 1
    assert steps[-1] == {"status": "completed"}
    record = one(stack.database, "SELECT status FROM execution_history WHERE execution_id = %s", run["id"])
    assert record["status"] == "completed"


def _undisturbed(orcheo: OrcheoApi, workflow_id: str, folder: Path) -> Record:
    """Return a run of the same workflow that nothing interrupts."""
    (run,) = orcheo.fire_webhooks(workflow_id, [{"folder": str(folder)}])
    return ended(orcheo, run)


def _state(run: Record) -> dict[str, Any]:
    """Return the final state of a run, without its configuration, which contains its id."""
    state: dict[str, Any] = run["output_payload"]["final_state"]
    return {key: value for key, value in state.items() if key != "config"}


def _trace(stack: Stack, run: Record) -> list[dict[str, Any]]:
    return everything(
        stack.database,
        "SELECT payload FROM execution_history_steps WHERE execution_id = %s ORDER BY step_index",
        run["id"],
    )


@pytest.mark.parametrize(("shape", "step"), _CASES)
def test_run_continues_in_the_step_in_which_its_worker_was_killed(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path, shape: str, step: str
) -> None:
    with stack.running("worker") as first, _held(orcheo, workflows[shape], tmp_path, step) as run:
        _stored(stack, run, tmp_path, shape, step)
        first.signal(Signals.SIGKILL)
        first.exit_code()
    with stack.running("worker") as second:
        _check(orcheo, stack, run, tmp_path, workflows[shape], shape, step)
        assert "run_resumed" in second.log


def test_drain_hands_a_run_over_at_once_and_costs_no_attempt(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as first, stack.running("worker") as second:
        with _held(orcheo, workflows["chain"], tmp_path, "c 1") as run:
            holder = _holder(stack, run, first, second)
            holder.signal(Signals.SIGTERM)
            until(lambda: _lines(tmp_path).count("begin c 1") == 2, what="the other worker is in the same step")
        _check(orcheo, stack, run, tmp_path, workflows["chain"], "chain", "c 1")
    row = one(stack.database, "SELECT refunded FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    assert row["refunded"] >= 1


def _holder(stack: Stack, run: Record, *workers: Process) -> Process:
    pid = one(
        stack.database,
        "SELECT p.pid FROM orcheo_dispatch.process AS p JOIN orcheo_dispatch.dispatch AS d ON d.worker_id = p.id"
        " WHERE d.run_id = %s",
        run["id"],
    )["pid"]
    (found,) = (worker for worker in workers if worker.pid == pid)
    return found


def test_run_that_is_lost_in_the_same_step_again_and_again_fails(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with _held_by_nobody(orcheo, workflows["chain"], tmp_path, "b 1") as run:
        for times in range(1, 5):
            with stack.running("worker") as worker:
                until(lambda: _lines(tmp_path).count("begin b 1") == times, what=f"attempt {times}")  # noqa: B023
                worker.signal(Signals.SIGKILL)
                worker.exit_code()
            if times == 4:
                break
        seen = ended(orcheo, run)
    assert seen["status"] == "failed"
    # The first attempt finished step a; three more made no progress.
    assert _lines(tmp_path).count("begin a 1") == 1


@contextmanager
def _held_by_nobody(orcheo: OrcheoApi, workflow_id: str, folder: Path, step: str) -> Iterator[Record]:
    (folder / f"hold-{step.replace(' ', '-')}").touch()
    (run,) = orcheo.fire_webhooks(workflow_id, [{"folder": str(folder)}])
    yield run


def test_paused_worker_writes_no_checkpoint_and_no_trace_once_its_run_is_anothers(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as first:
        with _held(orcheo, workflows["chain"], tmp_path, "b 1") as run:
            # The main process alone: the runner goes on and sends it a checkpoint and steps.
            first.signal(Signals.SIGSTOP)
            with stack.running("worker"):
                until(lambda: _lines(tmp_path).count("begin b 1") == 2, what="another worker is in the same step")
        with stack.running("worker"):
            _check_two(orcheo, run)
            before = _tables(stack, run)
            first.signal(Signals.SIGCONT)
            first.saw("run_not_settled")
            assert _tables(stack, run) == before


def _check_two(orcheo: OrcheoApi, run: Record) -> None:
    assert ended(orcheo, run)["status"] == "succeeded"


def _tables(stack: Stack, run: Record) -> str:
    return json.dumps(
        [
            everything(
                stack.database, f"SELECT to_jsonb(t) - 'blob' AS row FROM {table} AS t WHERE {key} = %s", run["id"]
            )
            for table, key in (
                ("checkpoints", "thread_id"),
                ("checkpoint_writes", "thread_id"),
                ("execution_history_steps", "execution_id"),
                ("execution_history", "execution_id"),
            )
        ],
        default=str,
        sort_keys=True,
    )


def test_run_that_had_ended_and_was_not_settled_is_settled_without_executing(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as worker:
        (run,) = orcheo.fire_webhooks(workflows["chain"], [{"folder": str(tmp_path)}])
        first = ended(orcheo, run)
        # As if the worker had been killed between the last checkpoint and the settle.
        execute(
            stack.database,
            "UPDATE workflow_runs SET status = 'pending', payload = payload || jsonb_build_object('status', 'pending')"
            " WHERE id = %s",
            run["id"],
        )
        until(lambda: _settled_again(stack, run), what="the run is settled again")
        assert ended(orcheo, run)["output_payload"] == first["output_payload"]
        assert Counter(_lines(tmp_path)) == Counter(f"{what} {name} 1" for what in ("begin", "end") for name in "abcd")
        assert worker.log.count("run_resumed") == 0


def _settled_again(stack: Stack, run: Record) -> bool:
    row = one(stack.database, "SELECT attempts, state FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    return (row["attempts"], row["state"]) == (2, "settled")


_REFUSE = """
CREATE FUNCTION refuse_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused by a test'; END $$;
CREATE TRIGGER refuse_checkpoint BEFORE INSERT ON checkpoints FOR EACH ROW
   WHEN ((NEW.metadata ->> 'step')::int = %s) EXECUTE FUNCTION refuse_checkpoint();
"""


@contextmanager
def _refusing(stack: Stack, step: int) -> Iterator[None]:
    """Have Postgres refuse the checkpoint after this step."""
    with psycopg.connect(stack.database.dsn, autocommit=True) as owner:
        owner.execute(_REFUSE % step)
        try:
            yield
        finally:
            owner.execute("DROP FUNCTION refuse_checkpoint CASCADE")


def test_refused_checkpoint_costs_a_run_no_result_and_no_later_one_is_stored(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    """A later checkpoint would refer to values that the refused one had.

    The writes of step b are stored, its checkpoint is not: the run has not ended, and b is not executed again.
    """
    with stack.running("worker") as first, _refusing(stack, 2):
        with _held(orcheo, workflows["chain"], tmp_path, "d 1") as run:
            first.saw("run_not_resumable")
            # Sent together with the checkpoint after it, if there were one.
            until(lambda: any("c" in each["payload"] for each in _trace(stack, run)), what="the trace has step c")
            first.signal(Signals.SIGKILL)
            first.exit_code()
    stored = everything(stack.database, "SELECT metadata FROM checkpoints WHERE thread_id = %s", run["id"])
    assert max(row["metadata"]["step"] for row in stored) == 1
    with stack.running("worker"):
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    begun = Counter(line.removeprefix("begin ") for line in _lines(tmp_path) if line.startswith("begin"))
    assert begun == {"a 1": 1, "b 1": 1, "c 1": 2, "d 1": 2}
    assert seen["output_payload"]["final_state"]["node_results"] == {name: {"times": 1} for name in "abcd"}


def test_checkpoint_that_is_refused_after_a_run_was_resumed_costs_it_no_result(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as first, _held(orcheo, workflows["chain"], tmp_path, "c 1") as run:
        first.signal(Signals.SIGKILL)
        first.exit_code()
    with _refusing(stack, 3), stack.running("worker") as second:
        seen = ended(orcheo, run)
        assert "run_not_resumable" in second.log
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["node_results"] == {name: {"times": 1} for name in "abcd"}
    assert any("checkpoint" in each["payload"] for each in _trace(stack, run))


def test_run_that_waits_for_a_person_ends_as_in_stock(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        (run,) = orcheo.fire_webhooks(workflows["asking"], [{"folder": str(tmp_path)}])
        assert ended(orcheo, run)["status"] == "succeeded"
    assert _lines(tmp_path) == ["begin a 1", "end a 1"]
