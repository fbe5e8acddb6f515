"""The commands that change runs: `cancel`, `fail` and `requeue`."""

from __future__ import annotations

from typing import Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.shared.text.plain import plain, say

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
    runs: Runs, reason: Reason = "Requeued by an operator.", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Make runs pending again that failed, were cancelled, or are running without a worker."""
    _repair(runs, "requeue", reason, dry_run, as_json)


def _repair(runs: list[str], action: str, reason: str, dry_run: bool, as_json: bool) -> None:
    settings = ready(writes=True)
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.repair import Action, repair
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role=action) as engine:
        done = repair(engine, runs, Action(action), reason=reason, dry_run=dry_run)
    if as_json:
        screen.print_json([each.as_json() for each in done])
    else:
        would = "would be " if dry_run else ""
        for each in done:
            said = f"refused: {each.refused}" if each.refused else f"{would}{each.status_before} -> {each.status_after}"
            say(plain(f"{each.run_id}  {said}"))
    raise typer.Exit(1 if any(each.refused for each in done) else 0)
