"""The table of upgrades, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.system import Execution
from tests.support import pages
from tests.upgrade.fleet import THIS
from tests.upgrade.judge import Column, counts
from tests.upgrade.releases import ROOT
from tests.upgrade.trial import Verdict

_PAGE = ROOT / "docs" / "reliability.md"
_HEAD = (
    *("last release", "order", "lost runs", "runs", "begun by the last, by this one"),
    *("processes killed, runs that they were executing", *Column, "seconds"),
)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a table with a row for each upgrade."""
    return pages.table(_HEAD, map(_row, verdicts))


def write(verdicts: Sequence[Verdict]) -> None:
    """Put the table into the page. Raises `ValueError` if the page has no markers."""
    pages.write(_PAGE, "upgrade", table(verdicts))


def _row(verdict: Verdict) -> tuple[str, ...]:
    conditions = verdict.conditions
    policy = f"`{conditions.lost_runs}`" + (", Orcheo" if conditions.execution is Execution.ORCHEO else "")
    return (
        verdict.release,
        conditions.order,
        policy,
        str(verdict.runs),
        f"{verdict.begun[verdict.release]}, {verdict.begun[THIS.name]}",
        f"{verdict.kills}, {verdict.lost_with_worker}" if conditions.kills else "none",
        *(str(count) for count in counts(verdict.findings).values()),
        f"{verdict.seconds:.0f}",
    )
