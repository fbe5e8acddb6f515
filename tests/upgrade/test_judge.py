"""The judge of upgrades sees what went wrong; the checker's own findings have tests of theirs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.evidence import Evidence
from tests.faults.history import History
from tests.faults.plan import Act, Plan, RunPlan
from tests.upgrade.judge import Column, counts, judge
from tests.upgrade.load import LONGEST_SECONDS, PACE, make_load

_RUN = "11111111-1111-4111-8111-111111111111"
_LOST = "Worker lost: no heartbeat since 2026-01-01T00:00:00Z"


def _evidence(act: Act = Act.ECHO, **columns: Any) -> Evidence:
    row = {"id": _RUN, "status": "failed", "payload": {"error": _LOST, "audit_log": []}, "updated_at": None, **columns}
    plan = Plan(1, PACE, (), (RunPlan(_RUN, 0.0, act, 0.0, None, "webhook"),))
    return Evidence(
        plan=plan,
        lost_runs="fail",
        fenced=False,
        runs={_RUN: row},
        ledger={},
        history=History([], []),
        notes=[],
        injected=[],
        exits=[],
        cancelled={},
        slots_leaked=0,
        logs={},
        secrets=(),
    )


def _failed(evidence: Evidence, held: dict[str, int], lost_runs: str = "fail") -> int:
    return counts(judge(evidence, [], held, lost_runs))[Column.FAILED]


def test_lost_run_is_a_finding_unless_its_worker_was_killed() -> None:
    assert _failed(_evidence(), {}) == 1
    assert _failed(_evidence(), {_RUN: 1}) == 0


@pytest.mark.parametrize("lost_runs", ["requeue", "resume"])
def test_lost_run_is_a_finding_where_the_policy_is_to_go_on_unless_each_attempt_was_killed(lost_runs: str) -> None:
    assert _failed(_evidence(), {_RUN: 2}, lost_runs) == 1
    assert _failed(_evidence(), {_RUN: 3}, lost_runs) == 0


def test_run_that_is_to_fail_may_fail() -> None:
    assert _failed(_evidence(Act.FAIL), {}) == 0


def test_standstill_is_a_finding() -> None:
    assert counts(judge(_evidence(Act.FAIL), ["nothing ended"], {}, "fail"))[Column.STUCK] == 1


def test_run_that_is_gone_is_lost() -> None:
    evidence = _evidence()
    gone = Evidence(**{**{name: getattr(evidence, name) for name in evidence.__dataclass_fields__}, "runs": {}})
    assert counts(judge(gone, [], {}, "fail"))[Column.LOST] == 1


def test_load_is_the_same_for_the_same_seed_and_each_run_ends_in_a_drain() -> None:
    load = make_load(3, seconds=100.0, per_second=6.0)
    assert load == make_load(3, seconds=100.0, per_second=6.0)
    assert load != make_load(4, seconds=100.0, per_second=6.0)
    assert len({run.run_id for run in load.runs}) == 600
    assert max(run.seconds for run in load.runs) <= LONGEST_SECONDS
    assert {run.act for run in load.runs} == {Act.ECHO, Act.WAIT, Act.FAIL}
