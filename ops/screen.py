"""How status, runs and checks look in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ops.findings import Finding, Grade
from ops.moments import ago, duration
from ops.run_list import RunRow
from ops.run_story import Event, Story, Who
from shared.errors import DatabaseError
from shared.queries import ALIVE_SECONDS, Status

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


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line."""
    print(json.dumps(value, default=str))


def status_view(status: Status) -> RenderableType:
    """Return the state of the whole: the promise first, then runs, then who is alive."""
    promise = Table(title="pending", title_justify="left", show_header=False, box=None, pad_edge=False)
    kept = "[green]kept[/]" if status.late_pending == 0 else "[red]broken[/]"
    promise.add_row("pending now", str(status.pending))
    promise.add_row("oldest", duration(status.oldest_pending_age) if status.pending else "-")
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
        processes.add_row(process.kind, process.host, str(process.pid), process.version, load, ago(process.seen_ago))
    return Group(promise, "", runs, "", dispatch, "", processes, *_beat_view(status.beat_silent_for))


def _beat_view(silent_for: float | None) -> list[RenderableType]:
    """Return a line where no Beat ticks: runs and cron go on."""
    if silent_for is not None and silent_for < ALIVE_SECONDS:
        return []
    since = "a day or ever" if silent_for is None else duration(silent_for)
    return [f"[yellow]no Beat for {since}: dispatchers and cron go on by themselves[/]"]


def runs_view(rows: Sequence[RunRow]) -> RenderableType:
    """Return a table of runs."""
    table = Table("run", "workflow", "by", "status", "created", "waited", "ran", "outcome", "fence", "attempts")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(
            row.run_id,
            row.workflow_id[:8],
            escape(row.triggered_by),
            f"[{_COLOURS.get(row.status, 'white')}]{row.status}[/]",
            ago(row.age),
            duration(row.waited),
            duration(row.ran),
            _outcome(row.outcome or row.state, row.reason),
            str(row.fence or "-"),
            str(row.attempts if row.attempts is not None else "-"),
        )
    return table


def _outcome(outcome: str | None, reason: str | None) -> str:
    """Return how it ended and why, where the one does not say the other."""
    return escape(": ".join(dict.fromkeys(each for each in (outcome, reason) if each)) or "-")


def away_view(error: DatabaseError) -> RenderableType:
    """Return the line that `status --watch` shows while it cannot read; what is below it is as it was seen last."""
    return Text(f"database away: {error}", style="bold red")


def looked_view(interval: float | None) -> RenderableType:
    """Return when this was looked at, by this host's clock, and how to leave."""
    leave = f", again in {interval:g} s, Ctrl-C ends" if interval is not None else ""
    return Text(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}{leave}", style="dim")


def story_view(story: Story) -> RenderableType:
    """Return one run's story: what it is, what happened to it in order, and what to do."""
    status = story.status or "deleted"
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_row("run", story.run_id)
    head.add_row("workflow", escape(story.workflow_id))
    head.add_row("status", f"[{_COLOURS.get(status, 'white')}]{status}[/]")
    head.add_row("created", f"{ago(story.age)}, by {escape(story.triggered_by)}")
    if story.fence is None:
        head.add_row("ledger", "never claimed")
    else:
        head.add_row("ledger", _outcome(story.outcome or story.state, story.reason))
        head.add_row("fence, attempts", f"{story.fence}, {story.attempts}")
        head.add_row("run slot", str(story.slot))
        head.add_row("dispatcher", _who(story.dispatcher))
        head.add_row("worker", _who(story.worker))
    if story.lease_left is not None:
        left = f"[red]over for {duration(-story.lease_left)}[/]" if story.lease_left < 0 else duration(story.lease_left)
        head.add_row("lease left", left)
    if story.error is not None:
        head.add_row("error", escape(story.error))

    events = Table("when (UTC)", "after", "what", "by", "")
    for event in story.events:
        after = f"+ {duration(event.after)}" if event.after is not None else ""
        events.add_row(f"{event.at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3], after, *_escaped(event))
    hints = [Text(f"> {hint}", style="yellow") for hint in story.hints]
    if not story.audit_readable:
        hints.append(
            Text("its audit log cannot be read as this database role, which may not see payloads", style="dim")
        )
    return Group(head, "", events, *hints)


def _escaped(event: Event) -> tuple[str, str, str]:
    return escape(event.what), escape(event.by), escape(event.detail or "")


def _who(who: Who | None) -> str:
    if who is None:
        return "-"
    if who.host is None:
        return f"{who.id} (gone)"
    return f"{escape(who.host)} pid {who.pid}, {escape(str(who.version))}, seen {ago(who.seen_ago)}, {who.id}"


def findings_view(findings: Iterable[Finding]) -> RenderableType:
    """Return the table of `check`."""
    table = Table("what", "", "found", "how to mend it")
    for finding in findings:
        # Escaped: what stands in square brackets is not meant for rich.
        table.add_row(finding.what, _GRADES[finding.grade], escape(finding.found), escape(finding.mend))
    return table
