"""The commands that show: `status`, `runs` and `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, finite, ready
from orcheo_dispatch.ops.runs.moments import ANY_TIME, parse_moment
from orcheo_dispatch.shared.errors import SettingsError

if TYPE_CHECKING:
    from orcheo_dispatch.shared.settings.model import Settings


def _statuses() -> list[str]:
    from orcheo_dispatch.ops.runs.words import STATUSES

    return list(STATUSES)


def _outcomes() -> list[str]:
    from orcheo_dispatch.ops.runs.words import OUTCOMES

    return list(OUTCOMES)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.2, max=3600, callback=finite, help="Seconds between two looks of --watch.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show runs by status, the age of pending runs, claims in progress and live processes.

    With --watch, Ctrl-C ends it with exit code 0. While the database is unavailable it says so, and goes on when it is
    back. Where the output is not a terminal it prints one status after the other, with --json each on one line.

    Examples:
      orcheo-dispatch status
      orcheo-dispatch status --watch --interval 5
    """
    settings = ready()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.commands import watching
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.status import read_status

    with open_engine(settings, role="status") as engine:
        if not watch:
            found = read_status(engine)
            screen.print_json(found.as_json()) if as_json else screen.console.print(screen.status_view(found))
            return
        try:
            watching.watch(engine, interval, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def runs(
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with this status; may be given again.", autocompletion=_statuses),
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(help="Only runs of this workflow: its id, or the beginning of it.")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="Only runs that were triggered by this; may be given again.")
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Only runs whose last claim ended so; may be given again.", autocompletion=_outcomes),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only runs created since: 15m, 2h, 3d ago, or 2026-11-23T12:00 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only runs created until: as --since.")] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only runs that run although their lease has expired.")
    ] = False,
    lost: Annotated[bool, typer.Option("--lost", help="Only runs whose worker was lost when they last ran.")] = False,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only runs that failed and are not tried again: see 'requeue --dead'.")
    ] = False,
    retrying: Annotated[
        bool, typer.Option("--retrying", help="Only failed runs that their workflow's retry policy tries again.")
    ] = False,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only runs that stopped at an interrupt: see 'answer'.")
    ] = False,
    unclaimed: Annotated[
        bool,
        typer.Option("--unclaimed", help="Only pending runs that no dispatcher will claim, and why; no other filter."),
    ] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Only pending runs, oldest first, and why each waits; no other filter.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of runs, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List runs, newest first, with their place in the ledger.

    Examples:
      orcheo-dispatch runs --status failed --since 2h
      orcheo-dispatch runs --stuck
    """
    created_since = parse_moment("--since", since) if since is not None else ANY_TIME
    created_until = parse_moment("--until", until) if until is not None else ANY_TIME
    settings = ready()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.list import Wanted, find_runs
    from orcheo_dispatch.ops.runs.unclaimed import find_unclaimed
    from orcheo_dispatch.shared.database.connections import open_engine

    filtered = any((status, workflow, trigger, outcome, since, until, stuck, lost, dead, retrying, waiting))
    if pending:
        if filtered or unclaimed:
            raise SettingsError("--pending cannot be combined with another filter")
        _print_waits(settings, limit, as_json)
        return
    if unclaimed:
        if filtered:
            raise SettingsError("--unclaimed cannot be combined with another filter")
        with open_engine(settings, role="runs") as engine:
            found = find_unclaimed(engine, limit)
        if as_json:
            screen.print_json([row.as_json() for row in found])
        else:
            screen.console.print(screen.unclaimed_view(found))
        return
    wanted = Wanted(
        statuses=status or (),
        triggers=trigger or (),
        outcomes=outcome or (),
        workflow=workflow,
        since=created_since,
        until=created_until,
        stuck=stuck,
        lost=lost,
        dead=dead,
        retrying=retrying,
        waiting=waiting,
        limit=limit,
    )
    with open_engine(settings, role="runs") as engine:
        rows = find_runs(engine, wanted)
    if as_json:
        screen.print_json([row.as_json() for row in rows])
    else:
        screen.console.print(screen.runs_view(rows))


def run(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")],
    errors: Annotated[
        bool, typer.Option("--error", help="Also show the texts of its errors, which may quote its inputs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell one run's whole story: who claimed, published, began and settled it, when, and why.

    Exits 1 where there is no such run.

    Examples:
      orcheo-dispatch run 3f2b8c1e
    """
    settings = ready()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.story import read_story
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="run") as engine:
        story = read_story(engine, run_id, settings, errors=errors)
    if as_json:
        screen.print_json(story.as_json())
    else:
        screen.console.print(screen.story_view(story))


def operations(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of operations, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List what operators did to runs and policies, newest first: who, through what, and why.

    The batches of one command are one line; with --json each batch is an object.

    Examples:
      orcheo-dispatch operations --limit 50
    """
    settings = ready()
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.operating import views
    from orcheo_dispatch.shared.database.connections import open_engine, transaction
    from orcheo_dispatch.shared.ledger.operators.operations import list_operations, read_entries

    with open_engine(settings, role="operations") as engine:
        if as_json:
            screen.print_json([row.as_json() for row in list_operations(engine, limit=limit)])
            return
        with transaction(engine, read_only=True) as connection:
            rows = read_entries(connection, limit=limit)
    screen.console.print(views.operations_view(rows))


def _print_waits(settings: Settings, limit: int, as_json: bool) -> None:
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.operating import views
    from orcheo_dispatch.shared.database.connections import open_engine, transaction
    from orcheo_dispatch.shared.ledger.operators.waits import read_waits

    with open_engine(settings, role="runs") as engine, transaction(engine) as connection:
        waits = read_waits(connection, limit=limit)
    if as_json:
        screen.print_json([each.as_json() for each in waits])
    else:
        screen.console.print(views.waits_view(waits))
