"""Runs of each shape of graph end as undisturbed ones do, whatever is killed, and no finished step is repeated."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.resume.ground import Ground, RunInFolder
from tests.resume.report import Row
from tests.resume.shapes import ALL, SHAPES, SHORT, Case, Killed, When
from tests.support.orcheo.stored_steps import finished_steps_repeated


@pytest.mark.parametrize("case", ALL if os.environ.get("TEST_RESUME") == "all" else SHORT, ids=str)
def test_run_ends_as_an_undisturbed_one_whatever_was_killed(
    ground: Ground, rows: list[Row], tmp_path: Path, case: Case
) -> None:
    row = Row(case)
    rows.append(row)
    undisturbed = ground.undisturbed(case.shape, tmp_path / "undisturbed")
    assert undisturbed.labels() == Counter(SHAPES[case.shape].steps)
    run = _disturbed(ground, tmp_path / "disturbed", case)
    _note(row, run, undisturbed)
    assert run.state() == undisturbed.state()
    _check(row, run)


def _disturbed(ground: Ground, folder: Path, case: Case) -> RunInFolder:
    """Carry the case out and return its run, which has ended."""
    shape = SHAPES[case.shape]
    ground.workers.wait_for(2 if case.killed is Killed.WORKER else 1)
    folder.mkdir()
    following = shape.steps[shape.steps.index(case.step) + 1 :][:1]
    held = [case.step] if case.when is When.INSIDE else list(following)
    run = ground.start(case.shape, folder, *held, alone=case.killed is Killed.RUNNER)
    if case.when is When.INSIDE:
        run.wait_for(f"begin {case.step}")
        run.wait_until_stored()
        if case.step == shape.steps[1]:
            time.sleep(shape.leases * ground.lease / 2)
    else:
        run.wait_for(f"end {case.step}")
    ground.kill(case.killed, run)
    for step in held:
        run.hold(step).unlink()
    assert run.ended()["status"] == "succeeded", run.ended()["payload"].get("error")
    return run


def _note(row: Row, run: RunInFolder, undisturbed: RunInFolder) -> None:
    row.finished_repeated = len(finished_steps_repeated(run.executions(), run.stored()))
    row.in_flight_repeated = (run.labels() - undisturbed.labels()).total()
    row.state_equal = run.state() == undisturbed.state()
    row.trace_complete = run.traced() >= undisturbed.traced() and run.trace_status() == "completed"


def _check(row: Row, run: RunInFolder) -> None:
    case, steps = row.case, SHAPES[row.case.shape].steps
    assert run.labels() >= Counter(steps)
    assert row.finished_repeated == 0
    repeated = run.labels() - Counter(steps)
    assert set(repeated.values()) <= {1}
    assert len({(each.namespace, each.step) for each in run.executions() if each.label in repeated}) <= 1
    assert row.trace_complete, (run.trace_status(), run.traced())
    assert run.trace()[-1] == {"status": "completed"}
    resumed = sum("resumed" in payload for payload in run.trace())
    attempts = run.ledger()["attempts"]
    if not case.killed.loses_the_run:
        assert resumed == attempts - 1 <= 1
    elif case.when is When.AFTER and case.step == steps[-1]:
        # The run may have ended by then, or be settled from its last checkpoint.
        assert resumed <= attempts - 1 <= 1
    else:
        assert resumed == attempts - 1 == 1
        assert case.when is When.AFTER or repeated[case.step] == 1
