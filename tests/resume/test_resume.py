"""A run continues on another worker after its last finished step, whatever became of the worker that executed it."""

from __future__ import annotations

import json
import time
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
from tests.resume.ground import SCRIPT
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.orcheo_stack import ended, ingest
from tests.support.processes.processes import Process, Stack, until


@pytest.fixture(scope="module")
def workflows(orcheo: OrcheoApi) -> dict[str, str]:
    """Return the ids of the workflows by shape."""
    shapes = ("chain", "branches", "asking", "asking_beside", "large", "delta")
    return {shape: ingest(orcheo, f"resume {shape}", SCRIPT, entrypoint=shape) for shape in shapes}


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


def _begun(folder: Path) -> Counter[str]:
    return Counter(line.removeprefix("begin ") for line in _lines(folder) if line.startswith("begin"))


def _trace(stack: Stack, run: Record) -> list[dict[str, Any]]:
    return everything(
        stack.database,
        "SELECT payload FROM execution_history_steps WHERE execution_id = %s ORDER BY step_index",
        run["id"],
    )


def test_drain_hands_a_run_over_at_once_and_costs_no_attempt(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker") as first, stack.running("worker") as second:
        with _held(orcheo, workflows["chain"], tmp_path, "c 1") as run:
            holder = _holder(stack, run, first, second)
            holder.signal(Signals.SIGTERM)
            until(lambda: _lines(tmp_path).count("begin c 1") == 2, what="the other worker is in the same step")
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["node_results"] == {name: {"times": 1} for name in "abcd"}
    assert _begun(tmp_path) == {"a 1": 1, "b 1": 1, "c 1": 2, "d 1": 1}
    steps = [each["payload"] for each in _trace(stack, run)]
    assert sum("resumed" in payload for payload in steps) == 1
    assert steps[-1] == {"status": "completed"}
    row = one(stack.database, "SELECT attempts, refunded FROM orcheo_dispatch.dispatch WHERE run_id = %s", run["id"])
    assert row["attempts"] == 2
    assert row["refunded"] >= 1


@pytest.mark.parametrize(
    ("by", "rule", "repeated"), [("setting", "fail", 0), ("policy", "hold", 0), ("setting", "requeue", 1)]
)
def test_finished_steps_are_not_repeated_although_the_rule_has_changed_unless_it_is_to_start_again(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path, by: str, rule: str, repeated: int
) -> None:
    workflow = workflows["chain"]
    with stack.running("worker") as first, _held(orcheo, workflow, tmp_path, "c 1") as run:
        first.signal(Signals.SIGTERM)
        assert first.exit_code() == 0
    if by == "policy":
        insert = "INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, lost_runs) VALUES ('', %s, %s)"
        execute(stack.database, insert, workflow, rule)
    try:
        with stack.running("worker", **({"ORCHEO_DISPATCH_LOST_RUNS": rule} if by == "setting" else {})):
            seen = ended(orcheo, run)
    finally:
        execute(stack.database, "DELETE FROM orcheo_dispatch.policy")
    assert seen["status"] == "succeeded", seen
    assert _begun(tmp_path) == {"a 1": 1 + repeated, "b 1": 1 + repeated, "c 1": 2, "d 1": 1}
    resumed = [each for each in _trace(stack, run) if "resumed" in each["payload"]]
    assert len(resumed) == 1 - repeated


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
        _settle_again(stack, run)
        assert ended(orcheo, run)["output_payload"] == first["output_payload"]
        assert Counter(_lines(tmp_path)) == Counter(f"{what} {name} 1" for what in ("begin", "end") for name in "abcd")
        assert worker.log.count("run_resumed") == 0


def test_trace_of_a_run_that_had_ended_and_was_not_settled_is_completed_once(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        (run,) = orcheo.fire_webhooks(workflows["chain"], [{"folder": str(tmp_path)}])
        ended(orcheo, run)
        _settle_again(stack, run)
    assert [each["payload"] for each in _trace(stack, run)].count({"status": "completed"}) == 1


def _settle_again(stack: Stack, run: Record) -> None:
    """Have a run settled as if its worker had been killed between the last checkpoint and the settle."""
    execute(
        stack.database,
        "UPDATE workflow_runs SET status = 'pending', payload = payload || jsonb_build_object('status', 'pending')"
        " WHERE id = %s",
        run["id"],
    )
    until(lambda: _settled_again(stack, run), what="the run is settled again")


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
    """A later checkpoint would refer to values that the refused one had."""
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
    assert _begun(tmp_path) == {"a 1": 1, "b 1": 2, "c 1": 2, "d 1": 2}
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
    assert _lines(tmp_path) == [f"{what} {name} 1" for name in "abc" for what in ("begin", "end")]


def test_run_that_waits_for_a_person_finishes_the_step_beside_the_interrupt_when_its_worker_was_killed(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    with stack.running("worker") as first:
        with _held(orcheo, workflows["asking_beside"], undisturbed, "b 1") as run:
            until(lambda: _interrupts(stack, run), what="the interrupt is stored")
        assert ended(orcheo, run)["status"] == "succeeded"
        assert "end b 1" in _lines(undisturbed)
        with _held(orcheo, workflows["asking_beside"], disturbed, "b 1") as run:
            until(lambda: _interrupts(stack, run), what="the interrupt is stored")
            first.signal(Signals.SIGKILL)
            first.exit_code()
    with stack.running("worker"):
        assert ended(orcheo, run)["status"] == "succeeded"
    # A step that stops at an interrupt has not ended: LangGraph executes it again up to there.
    assert _begun(disturbed) == {"start 1": 1, "a 1": 2, "b 1": 2}
    assert "end b 1" in _lines(disturbed)


def _interrupts(stack: Stack, run: Record) -> list[dict[str, Any]]:
    query = "SELECT idx FROM checkpoint_writes WHERE thread_id = %s AND channel = '__interrupt__'"
    return everything(stack.database, query, run["id"])


_REFUSE_WRITE = """
CREATE FUNCTION refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused by a test'; END $$;
CREATE TRIGGER refuse_write BEFORE INSERT ON checkpoint_writes FOR EACH ROW
   WHEN (NEW.channel LIKE '%:b') EXECUTE FUNCTION refuse_write();
"""


def test_step_whose_writes_are_stored_in_part_is_executed_again(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    """Its writes are too large for one statement: the first one is stored, the second is not."""
    with psycopg.connect(stack.database.dsn, autocommit=True) as owner, stack.running("worker") as first:
        owner.execute(_REFUSE_WRITE)
        try:
            with _held(orcheo, workflows["large"], tmp_path, "b 1") as run:
                first.saw("run_not_resumable")
                first.signal(Signals.SIGKILL)
                first.exit_code()
        finally:
            owner.execute("DROP FUNCTION refuse_write CASCADE")
    with stack.running("worker"):
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["node_results"]["b"]["sizes"] == [9_000_000, 9_000_000]
    assert _begun(tmp_path) == {"a 1": 2, "beside 1": 2, "b 1": 2}


def test_channel_that_is_stored_as_what_was_added_to_it_is_complete_after_a_loss(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    """LangGraph computes its value from the writes of all steps before: none of them may be left out."""
    with stack.running("worker") as first, _held(orcheo, workflows["delta"], tmp_path, "c 1") as run:
        first.signal(Signals.SIGKILL)
        first.exit_code()
    with stack.running("worker"):
        seen = ended(orcheo, run)
    assert seen["status"] == "succeeded", seen
    assert seen["output_payload"]["final_state"]["notes"] == ["after a", "after b", "after c"]
    assert _begun(tmp_path) == {"a 1": 1, "b 1": 1, "c 1": 2, "d 1": 1}


def test_results_of_a_branch_are_stored_while_another_is_in_progress(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with stack.running("worker"):
        with _held(orcheo, workflows["branches"], tmp_path, "c 1") as run:
            until(lambda: len(_tasks_with_writes(stack, run)) >= 2, what="two branches are stored")
        assert ended(orcheo, run)["status"] == "succeeded"


def test_results_of_a_step_alone_are_stored_once(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    """The checkpoint after a step has them; only where that is late are they stored before."""
    with stack.running("worker"), _held(orcheo, workflows["chain"], tmp_path, "d 1") as run:
        assert len(_tasks_with_writes(stack, run)) < len("abc")


def _tasks_with_writes(stack: Stack, run: Record) -> list[dict[str, Any]]:
    query = "SELECT DISTINCT task_id FROM checkpoint_writes WHERE thread_id = %s"
    return everything(stack.database, query, run["id"])


def test_run_that_is_lost_in_its_first_step_again_and_again_fails(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path
) -> None:
    with _held_by_nobody(orcheo, workflows["chain"], tmp_path, "a 1") as run:
        for times in range(1, 4):
            with stack.running("worker") as worker:
                until(lambda: _lines(tmp_path).count("begin a 1") == times, what=f"attempt {times}")  # noqa: B023
                until(lambda: _checkpoints(stack, run), what="its inputs are stored")
                worker.signal(Signals.SIGKILL)
                worker.exit_code()
        with stack.running("worker"):
            until(lambda: _has_failed(orcheo, run) or len(_lines(tmp_path)) > 3, what="the run fails, or begins again")
    assert _lines(tmp_path) == ["begin a 1"] * 3


def _has_failed(orcheo: OrcheoApi, run: Record) -> bool:
    return bool(orcheo.run(run["id"])["status"] == "failed")


def _checkpoints(stack: Stack, run: Record) -> list[dict[str, Any]]:
    query = "SELECT 1 AS one FROM checkpoints WHERE thread_id = %s AND (metadata ->> 'step')::int >= 0"
    return everything(stack.database, query, run["id"])


_WAIT_IN_TRACE = """
CREATE FUNCTION wait_in_trace() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
CREATE TRIGGER wait_in_trace BEFORE INSERT ON execution_history_steps FOR EACH ROW
   WHEN (NEW.payload ? '%s') EXECUTE FUNCTION wait_in_trace();
"""
_MORE_THAN_A_TRACE_IS_DELAYED_SECONDS = 0.5


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(("asking", "d 1", "c 1", "__interrupt__"), id="interrupt"),
        pytest.param(("branches", "b 1", "a 1", "a"), id="branch"),
    ],
)
def test_step_that_is_not_executed_again_is_in_the_trace(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], tmp_path: Path, case: tuple[str, str, str, str]
) -> None:
    """The worker is killed when it has sent what there is of the step, and the trace of the step waits for a lock."""
    shape, held, step, key = case
    with psycopg.connect(stack.database.dsn, autocommit=True) as owner:
        owner.execute(_WAIT_IN_TRACE % key)
        owner.execute("SELECT pg_advisory_lock(1)")
        try:
            with stack.running("worker") as first, _held_by_nobody(orcheo, workflows[shape], tmp_path, held) as run:
                until(lambda: f"end {step}" in _lines(tmp_path), what="the step has ended")
                time.sleep(_MORE_THAN_A_TRACE_IS_DELAYED_SECONDS)
                first.signal(Signals.SIGKILL)
                first.exit_code()
        finally:
            owner.execute("SELECT pg_advisory_unlock(1)")
            owner.execute("DROP FUNCTION wait_in_trace CASCADE")
    (tmp_path / f"hold-{held.replace(' ', '-')}").unlink()
    with stack.running("worker"):
        assert ended(orcheo, run)["status"] == "succeeded"
    assert any(key in each["payload"] for each in _trace(stack, run))
