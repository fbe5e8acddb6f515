"""The checker finds each kind of broken promise, and nothing where all were kept: on real tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.faults import history
from tests.faults.acts import BEGUN, DID, ENDED
from tests.faults.checker import Column, check, counts
from tests.faults.evidence import Evidence, read_notes, read_tables
from tests.faults.injector import Injected
from tests.faults.plan import FULL, Act, Kind, Plan, RunPlan
from tests.faults.supervisor import Exit
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, execute, insert_runs, store_of
from tests.support.orcheo import stored_steps
from tests.support.orcheo.stored_steps import Execution, Stored, read_stored, steps_in_flight_repeated

PID, WORKER = 77, 76
SECRET = "the-marker"


@dataclass
class Story:
    """A trial of three runs that all went well: one that succeeded, one that ignored its end, one that is cancelled."""

    database: Database
    store: Store
    side_effects: Path
    run_id: str
    stubborn: str
    cancelled: str
    fences: dict[str, int] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)

    def note(self, event: str, run_id: str | None = None, *, at: float = 0.0) -> None:
        """Append to the side effects."""
        run_id = run_id or self.run_id
        with self.side_effects.open("a") as file:
            file.write(f"{run_id} {self.fences[run_id]} {event} {at} {PID} {WORKER}\n")

    def begin_step(self, task_id: str = "t") -> None:
        """Begin a task of step 1 of the run that succeeded."""
        self.executions.append(Execution(self.run_id, "a", "", 1, task_id, time.time(), PID))

    def sql(self, query: str) -> None:
        """Do something to the run that succeeded that nobody should."""
        execute(self.database, query, self.run_id)

    def evidence(self) -> Evidence:
        """Return what is left behind."""
        runs, ledger, noted = read_tables(self.database.dsn)
        acts = {self.run_id: Act.ECHO, self.stubborn: Act.SWALLOW, self.cancelled: Act.WAIT}
        plans = tuple(RunPlan(run_id, 0.0, act, 0.0, None, "webhook") for run_id, act in acts.items())
        return Evidence(
            plan=Plan(1, FULL, (), plans),
            lost_runs="fail",
            fenced=True,
            runs=runs,
            ledger=ledger,
            history=noted,
            notes=read_notes(self.side_effects),
            injected=[],
            exits=[],
            cancelled={self.cancelled: 0.0},
            slots_leaked=0,
            logs={"worker-0": "run_begun\n"},
            secrets=(SECRET,),
            executions=self.executions,
            stored=self.stored(),
        )

    def stored(self) -> list[Stored]:
        """Return which steps are stored."""
        with psycopg.connect(self.database.dsn, autocommit=True) as connection:
            return read_stored(connection)


@pytest.fixture
def story(database: Database, tmp_path: Path) -> Iterator[Story]:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        history.install(connection)
        stored_steps.install(connection)
    run_id, stubborn, cancelled = insert_runs(database, 3)
    with store_of(database) as (store, _):
        told = Story(database, store, tmp_path / "side-effects", run_id, stubborn, cancelled)
        for claim in claim_all(store):
            told.fences[claim.run_id] = claim.fence
            assert isinstance(store.begin(claim, worker_id=uuid4(), lease=60), Run)
            told.note(BEGUN, claim.run_id)
            if claim.run_id == cancelled:
                execute(database, _CANCEL, cancelled)
            else:
                told.note(ENDED, claim.run_id)
            assert store.settle(claim, Ending.succeeded("{}"))
        execute(database, "UPDATE orcheo_dispatch.dispatch SET slot = 'returned'")
        yield told


# As the API writes it.
_CANCEL = """
UPDATE workflow_runs
   SET status = 'cancelled', updated_at = now(),
       payload = orcheo_dispatch.moved(payload, 'cancelled', 'run_cancelled', 'user', '{}', '{"error": "unwanted"}')
 WHERE id = %s
"""
_MOVE = "UPDATE workflow_runs SET status = %s, payload = payload || %s WHERE id = %s"


def test_nothing_is_found_where_all_promises_were_kept(story: Story) -> None:
    assert check(story.evidence()) == []


@pytest.mark.parametrize(
    ("column", "query"),
    [
        (Column.LOST, "DELETE FROM workflow_runs WHERE id = %s"),
        (Column.LOST, "UPDATE workflow_runs SET status = 'pending' WHERE id = %s"),
        (Column.STUCK, "UPDATE workflow_runs SET status = 'running' WHERE id = %s"),
        (Column.SLOTS, "UPDATE orcheo_dispatch.dispatch SET slot = 'due' WHERE run_id = %s"),
        (Column.SLOTS, "UPDATE orcheo_dispatch.dispatch SET slot = 'held' WHERE run_id = %s"),
        (Column.UNREADABLE, """UPDATE workflow_runs SET payload = payload || '{"ours": 1}' WHERE id = %s"""),
        (Column.UNREADABLE, "UPDATE workflow_runs SET updated_at = now() + interval '1 second' WHERE id = %s"),
        (
            Column.UNEXPLAINED,
            "UPDATE workflow_runs SET payload = jsonb_set(payload, '{audit_log}', '[]') WHERE id = %s",
        ),
    ],
)
def test_row_that_should_not_be_is_found(story: Story, column: Column, query: str) -> None:
    story.sql(query)
    assert counts(check(story.evidence()))[column] >= 1


def test_live_row_of_an_ended_run_is_found(story: Story) -> None:
    story.sql(
        "UPDATE orcheo_dispatch.dispatch SET state = 'claimed', outcome = NULL, settled_at = NULL,"
        " lease_expires_at = now() WHERE run_id = %s"
    )
    assert counts(check(story.evidence()))[Column.STUCK] == 1


def test_second_begin_of_a_claim_is_found(story: Story) -> None:
    story.note(BEGUN)
    assert counts(check(story.evidence()))[Column.TWICE] == 1


def test_execution_that_the_ledger_does_not_know_is_found(story: Story) -> None:
    story.fences[story.run_id] += 1
    story.note(DID)
    assert counts(check(story.evidence()))[Column.FORGOTTEN] == 0
    story.note(BEGUN)
    assert counts(check(story.evidence()))[Column.FORGOTTEN] == 1


def test_second_move_of_a_claim_to_running_is_found(story: Story) -> None:
    story.sql(
        "UPDATE orcheo_dispatch.dispatch SET state = 'running', outcome = NULL, settled_at = NULL,"
        " lease_expires_at = now() WHERE run_id = %s"
    )
    assert counts(check(story.evidence()))[Column.TWICE] >= 1


def test_attempts_that_differ_from_begins_are_found_unless_a_migration_subtracted_as_many(story: Story) -> None:
    for attempts in (0, 2):
        story.sql(f"UPDATE orcheo_dispatch.dispatch SET attempts = {attempts} WHERE run_id = %s")
        assert counts(check(story.evidence()))[Column.TWICE] == 1
    story.sql("UPDATE orcheo_dispatch.dispatch SET attempts = 0 WHERE run_id = %s")
    for subtracted, found in ((1, 0), (2, 1)):
        evidence = replace(story.evidence(), subtracted={story.run_id: subtracted})
        assert counts(check(evidence))[Column.TWICE] == found


@pytest.mark.parametrize(
    "query",
    [
        (
            "UPDATE orcheo_dispatch.dispatch SET state = 'published', outcome = NULL, lease_expires_at = now()"
            " WHERE run_id = %s"
        ),
        (
            "UPDATE orcheo_dispatch.dispatch SET state = 'claimed', outcome = NULL, lease_expires_at = now()"
            " WHERE run_id = %s"
        ),
        "UPDATE orcheo_dispatch.dispatch SET fence = fence - 1 WHERE run_id = %s",
        "UPDATE workflow_runs SET status = 'pending' WHERE id = %s",
    ],
)
def test_change_that_the_model_does_not_have_is_found(story: Story, query: str) -> None:
    story.sql(query)
    assert counts(check(story.evidence()))[Column.UNKNOWN] == 1


def test_side_effect_after_a_settle_is_found(story: Story) -> None:
    story.note(DID, at=_settled_at(story, story.run_id) + 2)
    assert counts(check(story.evidence()))[Column.LATE] == 1


@pytest.mark.parametrize("paused", [PID, WORKER])
def test_side_effect_that_nobody_can_prevent_is_not_found(story: Story, paused: int) -> None:
    settled = _settled_at(story, story.run_id)
    story.note(DID, at=settled + 0.5)
    story.note(DID, story.stubborn, at=_settled_at(story, story.stubborn) + 3)
    story.note(DID, at=settled + 6)
    pause = Injected(Kind.PAUSE_WORKER, settled - 1, settled + 5.5, paused)
    assert check(replace(story.evidence(), injected=[pause])) == []
    other = replace(pause, pid=paused + 10)
    assert counts(check(replace(story.evidence(), injected=[other])))[Column.LATE] == 1


def test_side_effect_of_a_blocked_neighbour_is_not_found(story: Story) -> None:
    settled = _settled_at(story, story.run_id)
    story.note(DID, story.stubborn, at=settled + 4)
    story.note(DID, at=settled + 4)
    evidence = story.evidence()
    assert counts(check(evidence))[Column.LATE] == 1
    runs = (replace(run, act=Act.BLOCK) if run.act is Act.SWALLOW else run for run in evidence.plan.runs)
    assert check(replace(evidence, plan=replace(evidence.plan, runs=tuple(runs)))) == []


def test_cancel_that_was_overwritten_is_found(story: Story) -> None:
    execute(story.database, _MOVE, "succeeded", '{"status": "succeeded"}', story.cancelled)
    assert counts(check(story.evidence()))[Column.OVERWRITTEN] == 2


def test_success_of_a_run_that_never_ended_is_found(story: Story) -> None:
    evidence = story.evidence()
    notes = [note for note in evidence.notes if note.event != ENDED]
    assert counts(check(replace(evidence, notes=notes)))[Column.UNEXPLAINED] == 2


def test_failure_without_a_reason_is_found(story: Story) -> None:
    execute(story.database, _FAIL, "no idea", story.run_id)
    assert counts(check(story.evidence()))[Column.UNEXPLAINED] == 1


@pytest.mark.parametrize(
    ("act", "log", "found"),
    [
        (Act.BLOCK, "loop_blocked run_id={run} seconds=2", 0),
        (Act.BLOCK, "loop_blocked run_id=unknown seconds=2", 1),
        (Act.ECHO, "loop_blocked run_id={run} seconds=2", 1),
        (Act.ECHO, "loop_blocked run_id={other} seconds=2\nrun_settled run_id={run} fence=1 outcome=lost", 0),
        (Act.ECHO, "loop_blocked run_id={other} seconds=2\nrun_settled run_id={run} fence=1 outcome=failed", 1),
        (Act.ECHO, "loop_blocked run_id={other} seconds=2\nrun_settled run_id=unknown fence=1 outcome=lost", 1),
        (Act.ECHO, "loop_blocked run_id=unknown seconds=2\nrun_settled run_id={run} fence=1 outcome=lost", 1),
    ],
    ids=["held the loop", "another did", "no such run", "lost beside it", "not lost", "another lost", "nobody held it"],
)
def test_runner_that_did_not_stop_explains_the_end_of_the_runs_in_it_if_one_held_its_loop(
    story: Story, act: Act, log: str, found: int
) -> None:
    error = "Runner was ended because a run in it did not stop in the middle of the run."
    execute(story.database, _FAIL, error, story.run_id)
    evidence = story.evidence()
    (run,) = (each for each in evidence.plan.runs if each.run_id == story.run_id)
    holder = replace(run, run_id="other", act=Act.BLOCK)
    others = (each for each in evidence.plan.runs if each is not run)
    plan = replace(evidence.plan, runs=(*others, replace(run, act=act), holder))
    logs = {"worker-0": log.format(run=run.run_id, other=holder.run_id)}
    assert counts(check(replace(evidence, plan=plan, logs=logs)))[Column.UNEXPLAINED] == found


_FAIL = """
UPDATE workflow_runs
   SET status = 'failed', updated_at = now(),
       payload = orcheo_dispatch.moved(payload, 'failed', 'run_failed', 'worker', '{}',
                                        jsonb_build_object('error', %s::text))
 WHERE id = %s
"""


@pytest.mark.parametrize(
    ("column", "change"),
    [
        (Column.SLOTS, lambda evidence: replace(evidence, slots_leaked=-1)),
        (Column.LEAKED, lambda evidence: replace(evidence, logs={"worker-0": f"said {SECRET}"})),
        (Column.CRASHED, lambda evidence: replace(evidence, logs={"beat-0": "Traceback (most recent call last):"})),
        (Column.CRASHED, lambda evidence: replace(evidence, exits=[Exit("worker-1", PID, -9, 0.0, True, True)])),
    ],
)
def test_what_is_beside_the_tables_is_found(
    story: Story, column: Column, change: Callable[[Evidence], Evidence]
) -> None:
    assert counts(check(change(story.evidence())))[column] == 1


_CHECKPOINT = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
VALUES (%s, '', 'c', '{}', '{"source": "loop", "step": 1}')
"""
_WRITE = """
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
VALUES (%%s, '', 'c', 't', '', 0, '%s', 'null', '')
"""


@pytest.mark.parametrize("query", [_CHECKPOINT, _WRITE % "node_results"])
def test_execution_of_a_step_that_is_stored_is_found(story: Story, query: str) -> None:
    story.begin_step()
    story.sql(query)
    assert check(story.evidence()) == []
    story.begin_step()
    assert counts(check(story.evidence()))[Column.REPEATED] == 1


@pytest.mark.parametrize("query", [_WRITE % "__error__", _WRITE % "__interrupt__"])
def test_second_execution_of_a_step_that_is_not_stored_is_not_found(story: Story, query: str) -> None:
    story.begin_step()
    story.sql(query)
    story.begin_step()
    story.sql(_CHECKPOINT)
    assert check(story.evidence()) == []
    assert steps_in_flight_repeated(story.executions).total() == 1


def test_execution_of_a_branch_beside_a_stored_one_is_not_found(story: Story) -> None:
    story.sql(_WRITE % "node_results")
    story.begin_step("another")
    assert check(story.evidence()) == []


def _settled_at(story: Story, run_id: str) -> float:
    settled = story.evidence().history.settled_at(run_id, story.fences[run_id])
    assert settled is not None
    return settled
