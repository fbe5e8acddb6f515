"""The table of trials, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.faults.checker import Column, counts
from tests.hosts.trial import Verdict
from tests.support import pages

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_FAILED = "heartbeat_failed"
_HEAD = (
    *("scenario", "lost runs", "runs", "ended meanwhile", "claims lost, requeued, released"),
    *("failed heartbeats", "seconds to rest", "findings"),
)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a table with a row for each trial."""
    return pages.table(_HEAD, map(_row, verdicts))


def write(verdicts: Sequence[Verdict]) -> None:
    """Put the table into the page. Raises `ValueError` if the page has no markers."""
    pages.write(_PAGE, "hosts", table(verdicts))


def _row(verdict: Verdict) -> tuple[str, ...]:
    claims = verdict.claims
    found = {column: count for column, count in counts(verdict.findings).items() if count}
    return (
        verdict.scenario.name,
        f"`{verdict.lost_runs}`",
        str(len(verdict.evidence.runs)),
        str(verdict.ended_meanwhile),
        ", ".join(str(claims[outcome]) for outcome in ("lost", "requeued", "released")),
        str(sum(log.count(_FAILED) for log in verdict.evidence.logs.values())),
        f"{verdict.rest_seconds:.0f}",
        "; ".join(f"{column}: {count}" for column, count in found.items()) or f"0 in {len(Column)} columns",
    )
