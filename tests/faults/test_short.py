"""The short form of the fault suite: every kind of fault once, under a small workload."""

from __future__ import annotations

import sys

from tests.faults.checker import counts
from tests.faults.ground import ground
from tests.faults.plan import SHORT, Kind
from tests.faults.schedule import make_plan
from tests.faults.system import Execution, System
from tests.faults.trial import Conditions, run_trial

_SEED = 2


def test_no_promise_is_broken_under_faults() -> None:
    plan = make_plan(_SEED, runs=70, seconds=10.0, pace=SHORT)
    with ground(orcheo=False) as shared:
        verdict = run_trial(plan, shared, Conditions(System.OURS, Execution.PLAY, "requeue"))
    print(f"logs and tables: {verdict.folder}", file=sys.stderr)
    assert counts(verdict.findings) == dict.fromkeys(counts([]), 0), verdict.findings
    assert {fault.kind for fault in verdict.evidence.injected} == set(Kind)
    verdict.discard()
