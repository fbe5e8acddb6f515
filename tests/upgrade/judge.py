"""What must be zero after an upgrade: what the fault suite checks, put into fewer columns, and what it allows.

The fault suite takes each lost run as explained. Here a run may be lost only if workers were killed while they executed
it: one under the policy `fail`, one in each of its attempts under the other policies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tests.faults import checker
from tests.faults.evidence import Evidence
from tests.faults.plan import Act

FAIL = "fail"
MAX_ATTEMPTS = 3
"""`ORCHEO_DISPATCH_MAX_ATTEMPTS` by default."""


class Column(StrEnum):
    """What must be zero."""

    LOST = "lost"
    TWICE = "begun twice"
    STUCK = "stuck"
    FAILED = "failed"
    SLOTS = "slots wrong"
    REPEATED = "finished steps repeated"
    OTHER = "anything else"


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise that was not kept, and the evidence in words."""

    column: Column
    what: str


_COLUMNS = {
    checker.Column.LOST: Column.LOST,
    checker.Column.TWICE: Column.TWICE,
    checker.Column.STUCK: Column.STUCK,
    checker.Column.SLOTS: Column.SLOTS,
    checker.Column.REPEATED: Column.REPEATED,
}


def judge(
    evidence: Evidence, standstills: Iterable[str], held_by_killed: Mapping[str, int], lost_runs: str
) -> list[Finding]:
    """Return all findings.

    `standstills` are phases in which too little happened; `held_by_killed` is the number of workers that were killed
    while they executed a run, by run; `lost_runs` is the policy while processes of both releases were alive.
    """
    found = [
        Finding(_COLUMNS.get(each.column, Column.OTHER), f"{each.column}: {each.what}")
        for each in checker.check(evidence)
    ]
    found += [Finding(Column.STUCK, what) for what in standstills]
    attempts = 1 if lost_runs == FAIL else MAX_ATTEMPTS
    may_fail = {run_id for run_id, workers in held_by_killed.items() if workers >= attempts}
    found += [Finding(Column.FAILED, what) for what in _failed(evidence, may_fail)]
    return found


def counts(findings: Iterable[Finding]) -> dict[Column, int]:
    """Return the number of findings by column, zeros included."""
    counted = Counter(finding.column for finding in findings)
    return {column: counted[column] for column in Column}


def _failed(evidence: Evidence, may_fail: Collection[str]) -> Iterator[str]:
    for run in evidence.plan.runs:
        row = evidence.runs.get(run.run_id)
        if row is not None and row["status"] == "failed" and run.act is not Act.FAIL and run.run_id not in may_fail:
            yield f"{run.run_id} ({run.act}): {str(row['payload'].get('error'))[:200]}"
