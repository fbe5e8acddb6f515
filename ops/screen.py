"""How status, runs and checks look in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ops.check import Finding, Grade
from shared.queries import ALIVE_SECONDS, RunRow, Status

_PIPE_WIDTH = 160
# A pipe has no width: there no id is cut short.
console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)

_COLOURS = {
    "pending": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}
_GRADES = {Grade.OK: "[green]ok[/]", Grade.WARN: "[yellow]warn[/]", Grade.WRONG: "[red]wrong[/]"}


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(value, indent=2, default=str))


def seconds(value: float | None) -> str:
    """Return a duration as a person reads it."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"


def status_view(status: Status) -> RenderableType:
    """Return the state of the whole: the promise first, then runs, then who is alive."""
    promise = Table(title="pending", title_justify="left", show_header=False, box=None, pad_edge=False)
    kept = "[green]kept[/]" if status.late_pending == 0 else "[red]broken[/]"
    promise.add_row("pending now", str(status.pending))
    promise.add_row("oldest", seconds(status.oldest_pending_age) if status.pending else "-")
    promise.add_row("older than 5 min", f"{status.late_share:.1%} ({status.late_pending}), promise of 0 % {kept}")
    promise.add_row("of others, not dispatched", str(status.pending_others))

    runs = Table(title="runs by status", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, count in sorted(status.runs.items()):
        runs.add_row(f"[{_COLOURS.get(name, 'white')}]{name}[/]", str(count))

    dispatch = Table(title="dispatch", title_justify="left", show_header=False, box=None, pad_edge=False)
    dispatch.add_row("claimed", str(status.claimed))
    dispatch.add_row("published", str(status.published))
    dispatch.add_row("running", str(status.running))
    dispatch.add_row("stuck", f"[red]{status.stuck}[/]" if status.stuck else "0")
    dispatch.add_row("run slots due", str(status.slots_due))

    processes = Table("process", "host", "pid", "version", "runs", "seen", title="alive", title_justify="left")
    for process in status.processes:
        load = f"{process.running} of {process.concurrency}" if process.kind == "worker" else "-"
        processes.add_row(
            process.kind, process.host, str(process.pid), process.version, load, f"{seconds(process.seen_ago)} ago"
        )
    return Group(promise, "", runs, "", dispatch, "", processes, *_beat_view(status.beat_silent_for))


def _beat_view(silent_for: float | None) -> list[RenderableType]:
    """Return a line where no Beat ticks: runs go on, but cron does not."""
    if silent_for is not None and silent_for < ALIVE_SECONDS:
        return []
    since = "a day or ever" if silent_for is None else seconds(silent_for)
    return [f"[yellow]no Beat for {since}: dispatchers poll by themselves, cron triggers wait[/]"]


def runs_view(rows: Sequence[RunRow]) -> RenderableType:
    """Return a table of runs."""
    table = Table("run", "workflow", "by", "status", "age", "waited", "ran", "outcome", "fence", "attempts")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(
            row.run_id,
            row.workflow_id[:8],
            row.triggered_by,
            f"[{_COLOURS.get(row.status, 'white')}]{row.status}[/]",
            seconds(row.age),
            seconds(row.waited),
            seconds(row.ran),
            row.outcome or row.state or "-",
            str(row.fence or "-"),
            str(row.attempts if row.attempts is not None else "-"),
        )
    return table


def findings_view(findings: Iterable[Finding]) -> RenderableType:
    """Return the table of `check`."""
    table = Table("what", "", "found", "how to mend it")
    for finding in findings:
        # Escaped: what stands in square brackets is not meant for rich.
        table.add_row(finding.what, _GRADES[finding.grade], escape(finding.found), escape(finding.mend))
    return table
