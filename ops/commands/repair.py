"""The commands that change runs: `cancel`, `fail`, `requeue` and `answer`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.ops.runs.author import author
from orcheo_dispatch.ops.runs.moments import ANY_TIME, Moment, parse_moment
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

MOST_DEAD = 10_000
"""How many runs `requeue --dead` requeues at most; the view `dead_runs` has no more."""

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs.")]
Reason = Annotated[str, typer.Option(help="Goes into the run's error and audit log.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]


def cancel(
    runs: Runs, reason: Reason = "Cancelled by an operator.", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Cancel runs that are pending or running; a worker that executes one stops it within two heartbeats."""
    _repair(runs, "cancel", reason, dry_run, as_json)


def fail(
    runs: Runs,
    reason: Annotated[str, typer.Option(help="Goes into the run's error and audit log.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fail runs that are pending, or that are running without a worker."""
    _repair(runs, "fail", reason, dry_run, as_json)


def requeue(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Ids of runs.")] = None,
    dead: Annotated[
        bool, typer.Option("--dead", help="Requeue the failed runs that are not tried again, 10,000 at most.")
    ] = False,
    workflow: Annotated[str | None, typer.Option(help="With --dead: only runs of this workflow.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="With --dead: only runs created since: 15m, 2h, 3d ago, or 2026-11-23T12:00 (UTC)."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Execute them from the start, not from the step that failed.")
    ] = False,
    reason: Reason = "Requeued by an operator.",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make runs pending again that failed, were cancelled, or are running without a worker."""
    if dead == bool(runs):
        raise SettingsError("requeue: expected ids of runs, or --dead")
    for option, value in {"--workflow": workflow, "--since": since}.items():
        if value is not None and not dead:
            raise SettingsError(f"{option} cannot be used without --dead")
    created_since = ANY_TIME if since is None else parse_moment("--since", since)
    _repair(
        runs, "requeue", reason, dry_run, as_json, from_start=from_start, workflow=workflow, created_since=created_since
    )


def answer(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run that waits for an answer.")],
    value: Annotated[
        str,
        typer.Option(
            "--json", help="The answer, as JSON; if several interrupts wait, an object with the id of each as key."
        ),
    ],
) -> None:
    """Answer a run that stopped at an interrupt: it becomes pending, and continues with the answer.

    The answer is not logged. Exits 1 if the run does not wait for one.
    """
    parsed = parse_answer(value)
    settings = ready(writes=True)
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.operators.answers import answer_run

    with open_engine(settings, role="answer") as engine:
        answer_run(engine, run, parsed, author())
    say(plain(f"{run}  answered: running -> pending"))


def parse_answer(value: str) -> str:
    """Return the JSON in `value`, checked. Raises `SettingsError` without quoting it: an answer is somebody's input."""
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--json is not valid JSON: {type(error).__name__}") from None
    return value


def _repair(
    runs: list[str] | None,
    action: str,
    reason: str,
    dry_run: bool,
    as_json: bool,
    *,
    from_start: bool = False,
    workflow: str | None = None,
    created_since: Moment = ANY_TIME,
) -> None:
    """Repair these runs; without `runs`, the dead ones."""
    settings = ready(writes=True)
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.list import Wanted, find_runs
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.operators.repairs import repair
    from orcheo_dispatch.shared.ledger.operators.selection import Action

    with open_engine(settings, role=action) as engine:
        if runs is None:
            wanted = Wanted(dead=True, workflow=workflow, since=created_since, limit=MOST_DEAD)
            runs = [each.run_id for each in find_runs(engine, wanted)]
        done = repair(engine, runs, Action(action), author(reason), dry_run=dry_run, from_start=from_start)
    if as_json:
        screen.print_json([each.as_json() for each in done])
    else:
        would = "would be " if dry_run else ""
        for each in done:
            said = f"refused: {each.refused}" if each.refused else f"{would}{each.status_before} -> {each.status_after}"
            say(plain(f"{each.run_id}  {said}"))
    raise typer.Exit(1 if any(each.refused for each in done) else 0)
