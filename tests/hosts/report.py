"""The table of trials, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.checker import Column, counts
from tests.hosts.trial import Verdict

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- hosts -->", "<!-- /hosts -->"
_SHOWN = 5
_HEAD = (
    *("scenario", "lost runs", "runs", "ended meanwhile", "claims lost, requeued, released"),
    *("failed heartbeats", "seconds to rest", *Column, "seconds"),
)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a table with a row for each trial."""
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
    claims = verdict.claims
    heartbeats = Counter(name for name, log in verdict.evidence.logs.items() for _ in range(log.count(_FAILED)))
    return (
        verdict.scenario.name,
        f"`{verdict.lost_runs}`",
        str(len(verdict.evidence.runs)),
        str(verdict.ended_meanwhile),
        ", ".join(str(claims[outcome]) for outcome in ("lost", "requeued", "released")),
        str(heartbeats.total()),
        f"{verdict.rest_seconds:.0f}",
        *(str(count) for count in counts(verdict.findings).values()),
        f"{verdict.seconds:.0f}",
    )


_FAILED = "heartbeat_failed"
