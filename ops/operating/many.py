"""Repair all runs that a filter chooses: ask before, show progress, and stop between two batches at Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orcheo_dispatch.ops.runs.moments import parse_moment, parse_span
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orcheo_dispatch.shared.ledger.operators.operations import Author
    from orcheo_dispatch.shared.ledger.operators.repairs import Repair
    from orcheo_dispatch.shared.ledger.operators.selection import Action, Selection

_STATUSES = ("pending", "running", "succeeded", "failed", "cancelled")
_SHOWN = 20
_SECONDS_BETWEEN_LINES = 2.0
_DONE = {"cancel": "cancelled", "fail": "failed", "requeue": "requeued", "answer": "answered"}

Runs = Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Ids of runs; or give a filter.")]
Workflow = Annotated[
    str | None,
    typer.Option(help="All runs of this workflow: its id, or the beginning of it."),
]
Workspace = Annotated[str | None, typer.Option(help="All runs of this workspace: its id.")]
Status = Annotated[
    list[str] | None,
    typer.Option(
        help="All runs with this status; may be given again. "
        "Otherwise: requeue takes failed runs, cancel and fail take pending and running ones.",
        autocompletion=lambda: list(_STATUSES),
    ),
]
ErrorClass = Annotated[
    str | None,
    typer.Option("--error-class", help="All runs that ended with this class of error, or for this reason: ValueError."),
]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", help="Only runs created longer ago than this: 15m, 2h, 3d.")
]
Since = Annotated[str | None, typer.Option(help="Only runs created since: 15m, 2h, 3d ago, or 2026-11-23T12:00 (UTC).")]
Dead = Annotated[bool, typer.Option("--dead", help="Only failed runs that are not tried again.")]
Limit = Annotated[int | None, typer.Option(min=1, max=1_000_000, help="With a filter: at most this many runs.")]
Yes = Annotated[bool, typer.Option("--yes", help="With a filter: do not ask before the change.")]


def selection_of(
    *,
    workflow: str | None,
    workspace: str | None,
    status: Sequence[str] | None,
    error_class: str | None,
    older_than: str | None,
    since: str | None,
    dead: bool,
) -> Selection | None:
    """Return the filter that these options stand for; None if none was given. Raises `SettingsError`."""
    from orcheo_dispatch.shared.ledger.operators.selection import Selection

    for each in status or ():
        if each not in _STATUSES:
            raise SettingsError.wrong("--status", each, "one of " + ", ".join(_STATUSES))
    for option, value in {"--workflow": workflow, "--workspace": workspace, "--error-class": error_class}.items():
        if value == "":
            raise SettingsError.wrong(option, value, "some text")
    moment = None if since is None else parse_moment("--since", since)
    found = Selection(
        workflow=workflow,
        workspace=workspace,
        status=tuple(status or ()),
        reason=error_class,
        older_than=None if older_than is None else parse_span("--older-than", older_than),
        since=None if moment is None else moment.at or moment.seconds_ago,
        dead=dead,
    )
    return None if found == Selection() else found


def refuse_unasked(command: str, *, yes: bool, dry_run: bool) -> None:
    """Raise `SettingsError` if a change of many runs would have to be confirmed, and nobody can be asked."""
    if not (yes or dry_run or sys.stdin.isatty()):
        raise SettingsError(f"{command} with a filter asks before the change, and there is no terminal: add --yes")


def repair_many(
    engine: Engine,
    selection: Selection,
    action: Action,
    author: Author,
    *,
    limit: int | None,
    yes: bool,
    dry_run: bool,
    from_start: bool,
    answer: str | None = None,
) -> list[Repair] | None:
    """Repair all runs of a selection and return what was done to each; None if the operator declined.

    At Ctrl-C, say how many were done and exit with 130.
    """
    from dataclasses import replace

    from orcheo_dispatch.ops.operating.scopes import find_workflow_with_runs, find_workspace
    from orcheo_dispatch.ops.runs.author import storable
    from orcheo_dispatch.shared.database.connections import transaction
    from orcheo_dispatch.shared.ledger.operators.repairs import repair_all
    from orcheo_dispatch.shared.ledger.operators.selection import count

    with transaction(engine) as connection:
        if selection.workflow is not None:
            selection = replace(selection, workflow=find_workflow_with_runs(connection, selection.workflow))
        if selection.workspace is not None:
            selection = replace(selection, workspace=find_workspace(connection, selection.workspace))
    if selection.reason is not None:
        selection = replace(selection, reason=storable(selection.reason))
    total = count(engine, selection.of(action))
    total = total if limit is None else min(total, limit)
    if total and not (yes or dry_run) and not typer.confirm(f"{action.value} {_runs(total)}?", err=True):
        return None
    with _progress(_DONE[action.value], total, quiet=dry_run) as progress:
        return repair_all(
            engine,
            selection,
            action,
            author,
            # What is confirmed is the number: runs that fail meanwhile are left to the next command.
            limit=total,
            dry_run=dry_run,
            from_start=from_start,
            answer=answer,
            on_progress=progress,
        )


def say_many(done: Sequence[Repair], action: str, *, dry_run: bool) -> None:
    """Print what was done to many runs: each of them if they are few, otherwise those that were refused."""
    would, as_json = "would be " if dry_run else "", "--output-json" if action == "answer" else "--json"
    refused = [each for each in done if each.refused]
    for each in done if len(done) <= _SHOWN else refused[:_SHOWN]:
        said = f"refused: {each.refused}" if each.refused else f"{would}{each.status_before} -> {each.status_after}"
        say(plain(f"{each.run_id}  {said}"))
    if len(done) > _SHOWN and len(refused) > _SHOWN:
        say(f"and {len(refused) - _SHOWN:,} more that were refused: {as_json} lists all")
    say(f"{would}{_DONE[action]}: {_runs(len(done) - len(refused))}, refused: {len(refused):,}")


@contextmanager
def _progress(verb: str, total: int, *, quiet: bool) -> Iterator[Callable[[Sequence[Repair]], None]]:
    """Yield what is called after each batch; show it on stderr, and turn Ctrl-C into an end between two batches."""
    counts = {"changed": 0, "refused": 0}
    stop: list[int] = []

    def interrupt(number: int, _frame: Any) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(number)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with _shown(verb, total, quiet=quiet or not total) as show:

            def report(done: Sequence[Repair]) -> None:
                counts["refused"] += sum(bool(each.refused) for each in done)
                counts["changed"] += sum(not each.refused for each in done)
                show(counts["changed"], counts["refused"])
                if stop and counts["changed"] + counts["refused"] < total:
                    raise KeyboardInterrupt

            yield report
    except KeyboardInterrupt:
        say(
            f"interrupted: {verb} {counts['changed']:,} of {_runs(total)}, refused {counts['refused']:,}; "
            "the same command continues with the others",
            to=sys.stderr,
        )
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(verb: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet:
        yield lambda _changed, _refused: None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from orcheo_dispatch.ops import screen

        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=screen.PlainConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(verb, total=total)
            yield lambda changed, refused: bar.update(task, completed=changed + refused)
    else:
        last = [time.monotonic()]

        def line(changed: int, refused: int) -> None:
            if time.monotonic() - last[0] >= _SECONDS_BETWEEN_LINES or changed + refused >= total > _SHOWN:
                last[0] = time.monotonic()
                say(f"{verb} {changed:,} of {_runs(total)}, refused {refused:,}", to=sys.stderr)

        yield line


def _runs(number: int) -> str:
    return f"{number:,} run" if number == 1 else f"{number:,} runs"
