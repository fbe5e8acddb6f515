"""Print status, runs and checks in a terminal.

Nothing that is shown is interpreted: a string is a string here, whatever markup or escape sequences it holds. Colours
come from `Text` alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.ops.runs.list import RunRow
from orcheo_dispatch.ops.runs.moments import ago, duration
from orcheo_dispatch.ops.runs.story import Story
from orcheo_dispatch.ops.runs.unclaimed import Unclaimed
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.isolations import Isolated
from orcheo_dispatch.shared.ledger.operators.pending import PendingWorkflow
from orcheo_dispatch.shared.ledger.status import Status
from orcheo_dispatch.shared.ledger.story import Who
from orcheo_dispatch.shared.text.plain import is_plain, plain, plain_lines

_PIPE_WIDTH = 160
_LONGEST_CELL = 400
_MOST_ERROR_CHARACTERS = 20_000


class PlainConsole(Console):
    """Shows strings literally, with control characters escaped, so that the terminal executes nothing in them."""

    def render_str(self, text: str, **_: Any) -> Text:
        """Return a string as text: neither markup nor emoji codes nor escape sequences mean anything."""
        return Text(plain(text, _LONGEST_CELL))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render what is no string too, such as a `Text` that somebody made of what a client wrote."""
        for segment in super().render(renderable, options):
            shown = segment.control or segment.text == "\n" or is_plain(segment.text)
            yield segment if shown else Segment(_one_for_one(segment.text), segment.style)


def _one_for_one(text: str) -> str:
    """Return a text of the same length: it has been laid out already."""
    return "".join(character if character == "\n" or is_plain(character) else "\ufffd" for character in text)


# A pipe has no width: there no id is cut short.
console = PlainConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH, emoji=False, markup=False, highlight=False)

_COLOURS = {
    "pending": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}
_GRADES = {Grade.OK: "green", Grade.WARN: "yellow", Grade.WRONG: "red"}


def _coloured(text: str, colour: str) -> Text:
    return Text(plain(text, _LONGEST_CELL), style=colour)


def _status(name: str) -> Text:
    return _coloured(name, _COLOURS.get(name, "white"))


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    print(json.dumps(value, indent=2, default=str))


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line."""
    print(json.dumps(value, default=str))


def status_view(status: Status) -> RenderableType:
    """Return the whole status: the promise first, then runs, then live processes."""
    promise = Table(title="pending", title_justify="left", show_header=False, box=None, pad_edge=False)
    late = Text(f"{status.late_share:.1%} ({status.late_pending}), promise of 0 % ")
    late.append_text(_coloured("kept", "green") if status.late_pending == 0 else _coloured("broken", "red"))
    promise.add_row("pending now", str(status.pending))
    promise.add_row("oldest", duration(status.oldest_pending_age) if status.pending else "-")
    promise.add_row("older than 5 min", late)
    promise.add_row("of others, not dispatched", str(status.pending_others))
    if status.unclaimed:
        unclaimed = _coloured(str(status.unclaimed), "red")
        promise.add_row(
            "no dispatcher will claim", unclaimed.append(", see orcheo-dispatch runs --unclaimed", style="default")
        )

    runs = Table(title="runs by status", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, count in sorted(status.runs.items()):
        runs.add_row(_status(name), str(count))

    dispatch = Table(title="dispatch", title_justify="left", show_header=False, box=None, pad_edge=False)
    dispatch.add_row("claimed", str(status.claimed))
    dispatch.add_row("published", str(status.published))
    dispatch.add_row("running", str(status.running))
    dispatch.add_row("stuck", _coloured(str(status.stuck), "red" if status.stuck else ""))
    dispatch.add_row("run slots due", str(status.slots_due))

    processes = Table("process", "host", "pid", "version", "runs", "seen", title="alive", title_justify="left")
    for process in status.processes:
        load = f"{process.running} of {process.concurrency}" if process.kind == "worker" else "-"
        processes.add_row(process.kind, process.host, str(process.pid), process.version, load, ago(process.seen_ago))
    warnings = [*_elsewhere_view(status.begun_elsewhere), *_beat_view(status)]
    isolated = _isolated(status.isolated, status.isolated_workflows)
    switched = _switched(status)
    flood = _pending_workflows(status.pending_workflows)
    return Group(*switched, promise, *flood, "", runs, "", dispatch, "", processes, *isolated, *warnings)


def _switched(status: Status) -> list[RenderableType]:
    """Return a loud line if maintenance is on, and a table of what is paused, where anything is."""
    lines: list[RenderableType] = []
    if status.maintenance:
        lines.append(
            _coloured("MAINTENANCE IS ON: no run is claimed. 'orcheo-dispatch maintenance off' ends it", "bold red")
        )
    if status.paused:
        table = Table("paused", "until (UTC)", "why", "by", title_justify="left")
        for each in status.paused:
            table.add_row(each.scope, until_text(each.until) if each.until else "unpaused", each.why or "", each.by)
        lines += [table, ""]
    return lines


def _pending_workflows(rows: Sequence[PendingWorkflow]) -> list[RenderableType]:
    """Return a table of the workflows with the most pending runs, where there are any."""
    if not rows:
        return []
    table = Table("workflow", "name", "pending", "oldest", "waits", title="pending by workflow", title_justify="left")
    table.columns[0].no_wrap = True
    for row in rows:
        until = f" until {until_text(row.until)}" if row.until and row.reason == "paused" else ""
        by = f", by {row.by}" if row.by else ""
        why = f"{(row.reason or 'unknown').replace('_', ' ')}{until}{by}"
        table.add_row(row.workflow_id, row.workflow or "-", str(row.pending), duration(row.oldest_age), why)
    return ["", table]


def _isolated(count: int | None, rows: Sequence[Isolated]) -> list[RenderableType]:
    """Return a table of workflows whose runs get processes of their own, where there are any."""
    if not rows:
        return []
    table = Table("workflow", "version", "reason", "by", "until (UTC)", "times", title_justify="left")
    table.title = "isolated" if count is None or count == len(rows) else f"isolated: {len(rows)} of {count}"
    for row in rows:
        table.add_row(
            row.workflow_id,
            row.workflow_version_id or "all",
            row.reason,
            row.by,
            until_text(row.until),
            str(row.times),
        )
    return ["", table]


def until_text(until: datetime | None) -> str:
    """Return until when something lasts."""
    return "cleared" if until is None else f"{until.astimezone(UTC):%Y-%m-%d %H:%M}"


def _elsewhere_view(runs: int | None) -> list[RenderableType]:
    """Return a warning if another process begins runs."""
    if not runs:
        return []
    return [
        Text(
            f"{runs} runs of the last 10 minutes were begun by the API itself or by Orcheo's own worker: "
            "see orcheo-dispatch check",
            style="yellow",
        )
    ]


def _beat_view(status: Status) -> list[RenderableType]:
    """Return a line if no Beat ticks: runs and cron go on."""
    if any(process.kind == "beat" for process in status.processes):
        return []
    since = "a day or ever" if status.beat_silent_for is None else duration(status.beat_silent_for)
    return [_coloured(f"no Beat for {since}: dispatchers and cron continue without it", "yellow")]


def runs_view(rows: Sequence[RunRow]) -> RenderableType:
    """Return a table of runs."""
    table = Table("run", "workflow", "by", "status", "created", "waited", "ran", "outcome", "fence", "attempts")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(
            row.run_id,
            row.workflow_id[:8],
            row.triggered_by,
            _status(row.status),
            ago(row.age),
            duration(row.waited),
            duration(row.ran),
            _outcome(row.outcome or row.state, row.reason, *_next_of(row)),
            str(row.fence or "-"),
            str(row.attempts if row.attempts is not None else "-"),
        )
    return table


def unclaimed_view(rows: Sequence[Unclaimed]) -> RenderableType:
    """Return a table of runs that no dispatcher will claim, and what to do about each."""
    table = Table("run", "workflow", "by", "created", "reason", "how to fix it")
    for row in rows:
        table.add_row(row.run_id, row.workflow_id[:8], row.triggered_by, ago(row.age), row.reason, row.mend)
    return table


def _outcome(*told: str | None) -> str:
    """Return how it ended and why, where the one does not say the other."""
    return ": ".join(dict.fromkeys(each for each in told if each)) or "-"


def _next_of(row: RunRow) -> Iterable[str]:
    """Return what a run waits for that no worker holds."""
    if row.next_attempt_at is not None:
        yield f"retry {row.retries} at {row.next_attempt_at.astimezone(UTC):%H:%M:%S} UTC"
    if row.interrupts:
        yield f"{row.interrupts} to answer"


def away_view(error: DatabaseError) -> RenderableType:
    """Return the line that `status --watch` shows while it cannot read; what is below it is as it was seen last."""
    return _coloured(f"database unavailable: {error}", "bold red")


def looked_view(interval: float | None) -> RenderableType:
    """Return the time of this reading, by this host's clock, and how to quit."""
    leave = f", again in {interval:g} s, Ctrl-C ends" if interval is not None else ""
    return Text(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}{leave}", style="dim")


def story_view(story: Story) -> RenderableType:
    """Return one run's story: what it is, what happened to it in order, and what to do."""
    status = story.status or "deleted"
    head = Table(show_header=False, box=None, pad_edge=False)
    head.add_row("run", story.run_id)
    head.add_row("workflow", story.workflow_id)
    head.add_row("workspace", story.workspace_id or "none")
    head.add_row("status", _status(status))
    head.add_row("created", f"{ago(story.age)}, by {story.triggered_by}")
    if story.fence is None:
        head.add_row("ledger", "never claimed")
    else:
        head.add_row("ledger", _outcome(story.outcome or story.state, story.reason))
        head.add_row("fence, attempts", f"{story.fence}, {story.attempts}")
        head.add_row("run slot", str(story.slot))
        head.add_row("dispatcher", _who(story.dispatcher))
        head.add_row("worker", _who(story.worker))
    if story.lease_left is not None:
        over = story.lease_left < 0
        left = f"over for {duration(-story.lease_left)}" if over else duration(story.lease_left)
        head.add_row("lease left", _coloured(left, "red" if over else ""))
    if story.error is not None:
        head.add_row("error", Text(plain_lines(story.error, _MOST_ERROR_CHARACTERS)))

    events = Table("when (UTC)", "after", "what", "by", "")
    for event in story.events:
        after = f"+ {duration(event.after)}" if event.after is not None else ""
        events.add_row(
            f"{event.at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3], after, event.what, event.by, event.detail or ""
        )
    hints = [_coloured(f"> {hint}", "yellow") for hint in story.hints]
    if not story.audit_readable:
        hints.append(
            Text("its audit log cannot be read as this database role, which may not see payloads", style="dim")
        )
    return Group(head, "", events, *hints)


def _who(who: Who | None) -> str:
    if who is None:
        return "-"
    if who.host is None:
        return f"{who.id} (gone)"
    return f"{who.host} pid {who.pid}, {who.version}, seen {ago(who.seen_ago)}, {who.id}"


def findings_view(findings: Iterable[Finding]) -> RenderableType:
    """Return the table of `check`."""
    table = Table("what", "", "found", "how to fix it")
    for finding in findings:
        table.add_row(finding.what, _coloured(finding.grade.value, _GRADES[finding.grade]), finding.found, finding.mend)
    return table
