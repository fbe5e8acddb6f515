"""The table of upgrades, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.system import Execution
from tests.upgrade.fleet import THIS
from tests.upgrade.judge import Column, counts
from tests.upgrade.releases import ROOT
from tests.upgrade.trial import Verdict

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- upgrade -->", "<!-- /upgrade -->"
_SHOWN = 5
_HEAD = (
    *("last release", "order", "lost runs", "runs", "begun by the last, by this one"),
    *("processes killed, runs that they were executing", *Column, "seconds"),
)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a table with a row for each upgrade."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(each) for each in verdicts)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def findings(verdict: Verdict) -> str:
    """Return the first findings of each column, a line each."""
    lines = []
    for column in Column:
        found = [finding.what for finding in verdict.findings if finding.column is column]
        lines += [f"{column}: {what}" for what in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"{column}: and {len(found) - _SHOWN} more")
    return "\n".join(lines)


def write(verdicts: Sequence[Verdict]) -> None:
    """Put the table into the page. Raises `ValueError` where the page has no markers."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no markers {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(verdicts)}\n\n{END}{after}")


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
