"""What a trial has shown, as tables for people and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from tests.faults.checker import Column, counts
from tests.faults.plan import BOUNDED, Kind
from tests.faults.recovery import NEVER, longest
from tests.faults.trial import Conditions, Verdict
from tests.support.orcheo.stored_steps import steps_in_flight_repeated

_BOUND_BEYOND_LEASE_SECONDS = 5.0
_SHOWN = 5
_console = Console(width=120, highlight=False)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one trial."""

    seed: int
    system: str
    executor: str
    lost_runs: str
    runs: int
    ended: dict[str, int]
    claims: dict[str, int]
    """What became of the claims, by outcome: how much the faults have done."""
    faults: dict[Kind, int]
    columns: dict[Column, int]
    recovery: dict[Kind, float]
    """The longest from a fault to recovery, in seconds, by kind."""
    bound: float
    """What that may be at most for the kinds of `BOUNDED`."""
    restarts: int
    """Processes that ended by themselves, with a code other than 0."""
    seconds: float
    executions: int = 0
    """Of steps, under `resume`."""
    in_flight_repeated: int = 0
    """Executions of steps beyond the first one: of those in flight at a loss, unless `columns` says otherwise."""

    @classmethod
    def of(cls, verdict: Verdict, conditions: Conditions) -> Self:
        """Return the report of a trial."""
        evidence = verdict.evidence
        return cls(
            seed=evidence.plan.seed,
            system=conditions.system.value,
            executor=conditions.execution.value,
            lost_runs=conditions.lost_runs,
            runs=len(evidence.plan.runs),
            ended=dict(Counter(row["status"] for row in evidence.runs.values())),
            claims=dict(Counter(str(move.outcome) for move in evidence.history.moves if move.sign == "settled")),
            faults=dict(Counter(fault.kind for fault in evidence.injected)),
            columns=counts(verdict.findings),
            recovery={kind: each.seconds for kind, each in longest(verdict.recoveries).items()},
            bound=evidence.plan.pace.lease + _BOUND_BEYOND_LEASE_SECONDS,
            restarts=sum(1 for each in evidence.exits if each.code and not each.asked),
            seconds=verdict.seconds,
            executions=len(evidence.executions),
            in_flight_repeated=steps_in_flight_repeated(evidence.executions).total()
            - counts(verdict.findings)[Column.REPEATED],
        )

    @property
    def late(self) -> list[Kind]:
        """The kinds of fault whose recovery took longer than its bound."""
        return [kind for kind in BOUNDED if self.recovery.get(kind, 0.0) > self.bound]

    @property
    def red(self) -> bool:
        """Whether a promise was not kept."""
        return any(self.columns.values()) or bool(self.late)

    def plain(self) -> dict[str, Any]:
        """Return it for JSON; a recovery that never came is null."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["recovery"] = {kind: None if s == NEVER else round(s, 2) for kind, s in self.recovery.items()}
        return {**fields, "red": self.red}


def print_trial(report: Report, verdict: Verdict) -> None:
    """Print the table of one trial, and the first findings of each column."""
    title = f"seed {report.seed}, {report.system}, {report.executor}, lost runs {report.lost_runs}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row("runs", f"{report.runs}: {_tally(report.ended)}")
    table.add_row("claims", f"{sum(report.claims.values())}: {_tally(report.claims)}")
    table.add_row("faults injected", str(sum(report.faults.values())))
    for column, count in report.columns.items():
        table.add_row(column, str(count), style="red" if count else None)
    if report.executions:
        table.add_row("steps executed", str(report.executions))
        table.add_row("steps in flight repeated", str(report.in_flight_repeated))
    table.add_row("processes that ended by themselves", str(report.restarts))
    table.add_row("seconds", f"{report.seconds:.0f}")
    _console.print(table)
    faults = Table("fault", "times", "longest to recovery, s", "bound, s")
    for kind, count in report.faults.items():
        bound = f"{report.bound:g}" if kind in BOUNDED else ""
        faults.add_row(
            kind, str(count), _show(report.recovery[kind]), bound, style="red" if kind in report.late else None
        )
    _console.print(faults)
    for column in Column:
        found = [finding.what for finding in verdict.findings if finding.column is column]
        for what in found[:_SHOWN]:
            _console.print(f"{column}: {what}", markup=False)
        if len(found) > _SHOWN:
            _console.print(f"{column}: and {len(found) - _SHOWN} more")


def print_summary(reports: list[Report]) -> None:
    """Print the table over all trials: what must be zero, and the longest recoveries."""
    table = Table("", *(f"seed {report.seed}" for report in reports), title="all trials", title_justify="left")
    table.add_row("lost runs", *(report.lost_runs for report in reports))
    table.add_row("runs", *(str(report.runs) for report in reports))
    table.add_row("faults", *(str(sum(report.faults.values())) for report in reports))
    for column in Column:
        table.add_row(column, *(str(report.columns[column]) for report in reports))
    if any(report.executions for report in reports):
        table.add_row("steps executed", *(str(report.executions) for report in reports))
        table.add_row("steps in flight repeated", *(str(report.in_flight_repeated) for report in reports))
    for kind in BOUNDED:
        table.add_row(f"recovery, {kind}", *(_show(report.recovery.get(kind, 0.0)) for report in reports))
    others = [max((s for kind, s in r.recovery.items() if kind not in BOUNDED), default=0.0) for r in reports]
    table.add_row("recovery, any other fault", *map(_show, others))
    _console.print(table)


def _tally(counted: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counted.items()))


def _show(seconds: float) -> str:
    return "never" if seconds == NEVER else f"{seconds:.1f}"
