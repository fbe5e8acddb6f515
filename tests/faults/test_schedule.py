"""A seed makes a plan: always the same one."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.plan import BOUNDED, FULL, SHORT, Kind, Pace, Plan
from tests.faults.schedule import make_plan

SEEDS = range(1, 51)


def _full(seed: int) -> Plan:
    return make_plan(seed, runs=500, seconds=60.0)


def test_same_seed_makes_same_plan() -> None:
    assert _full(7) == _full(7)


def test_another_seed_makes_another_plan() -> None:
    plans = [_full(seed) for seed in SEEDS]
    assert len({plan.faults for plan in plans}) == len(plans)
    assert len({run.run_id for plan in plans for run in plan.runs}) == 500 * len(plans)


@pytest.mark.parametrize("pace", [FULL, SHORT])
def test_every_kind_of_fault_is_in_every_plan(pace: Pace) -> None:
    for seed in SEEDS:
        plan = make_plan(seed, runs=70, seconds=10.0, pace=pace)
        assert {fault.kind for fault in plan.faults} == set(Kind)


def test_longer_plan_has_more_faults() -> None:
    assert len(make_plan(1, runs=500, seconds=200.0).faults) > len(_full(1).faults) >= len(Kind)


def test_nothing_strikes_while_bounded_recovery_is_measured() -> None:
    for seed in SEEDS:
        faults = _full(seed).faults
        for bounded in (fault for fault in faults if fault.kind in BOUNDED):
            others = [fault for fault in faults if fault is not bounded]
            assert all(each.ends_at < bounded.at or each.at >= bounded.ends_at + FULL.quiet for each in others)


def test_workload_has_all_shapes_of_runs() -> None:
    runs = _full(3).runs
    assert len(runs) == 500
    assert sum(run.cancel_after is not None for run in runs) == 4 * 5 + 8 * 5 + 2 * 5
    acts = Counter(run.act for run in runs)
    assert min(acts.values()) >= 5
    assert any(run.seconds > FULL.lease for run in runs)


def test_small_workload_has_all_shapes_too() -> None:
    assert len(Counter(run.act for run in make_plan(1, runs=60, seconds=10.0, pace=SHORT).runs)) == 7
