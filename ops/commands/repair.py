"""The commands that change runs: `cancel`, `fail`, `requeue` and `answer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.ops.operating.answers import parse_answer
from orcheo_dispatch.ops.operating.many import (
    Dead,
    ErrorClass,
    Limit,
    OlderThan,
    Runs,
    Since,
    Status,
    Workflow,
    Workspace,
    Yes,
    refuse_unasked,
    repair_many,
    say_many,
    selection_of,
)
from orcheo_dispatch.ops.runs.author import author
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

if TYPE_CHECKING:
    from orcheo_dispatch.shared.ledger.operators.selection import Selection

Reason = Annotated[
    str,
    typer.Option("--reason", "--why", help="Goes into the run's error and audit log, and into the log of operations."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]


def cancel(
    runs: Runs = None,
    workflow: Workflow = None,
    workspace: Workspace = None,
    status: Status = None,
    error_class: ErrorClass = None,
    older_than: OlderThan = None,
    since: Since = None,
    limit: Limit = None,
    reason: Reason = "Cancelled by an operator.",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Cancel runs that are pending or running; a worker that executes one stops it within two heartbeats.

    Give ids, or a filter: then it asks with the number of runs first. Exits 1 if a run was refused.

    Examples:
      orcheo-dispatch cancel --workflow 3f2a --status pending --older-than 2h --dry-run
    """
    chosen = selection_of(
        workflow=workflow,
        workspace=workspace,
        status=status,
        error_class=error_class,
        older_than=older_than,
        since=since,
        dead=False,
    )
    _repair("cancel", runs, chosen, limit, reason, dry_run=dry_run, yes=yes, as_json=as_json)


def fail(
    reason: Reason,
    runs: Runs = None,
    workflow: Workflow = None,
    workspace: Workspace = None,
    status: Status = None,
    error_class: ErrorClass = None,
    older_than: OlderThan = None,
    since: Since = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Fail runs that are pending, or that are running without a worker.

    Give ids, or a filter: then it asks with the number of runs first. Exits 1 if a run was refused.

    Examples:
      orcheo-dispatch fail --workflow 3f2a --status running --older-than 1d --reason "host lost" --yes
    """
    chosen = selection_of(
        workflow=workflow,
        workspace=workspace,
        status=status,
        error_class=error_class,
        older_than=older_than,
        since=since,
        dead=False,
    )
    _repair("fail", runs, chosen, limit, reason, dry_run=dry_run, yes=yes, as_json=as_json)


def requeue(
    runs: Runs = None,
    dead: Dead = False,
    workflow: Workflow = None,
    workspace: Workspace = None,
    status: Status = None,
    error_class: ErrorClass = None,
    older_than: OlderThan = None,
    since: Since = None,
    limit: Limit = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Execute them from the start, not from the step that failed.")
    ] = False,
    reason: Reason = "Requeued by an operator.",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make runs pending again that failed, were cancelled, or are running without a worker.

    Give ids, or a filter: then it asks with the number of runs first. Exits 1 if a run was refused.

    Examples:
      orcheo-dispatch requeue --dead --workflow 3f2a --since 2h --yes
    """
    chosen = selection_of(
        workflow=workflow,
        workspace=workspace,
        status=status,
        error_class=error_class,
        older_than=older_than,
        since=since,
        dead=dead,
    )
    _repair("requeue", runs, chosen, limit, reason, dry_run=dry_run, yes=yes, as_json=as_json, from_start=from_start)


def answer(
    value: Annotated[
        str,
        typer.Option(
            "--json", help="The answer, as JSON; if several interrupts wait, an object with the id of each as key."
        ),
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Id of a run that waits for an answer; or give a filter.")
    ] = None,
    workflow: Workflow = None,
    workspace: Workspace = None,
    older_than: OlderThan = None,
    since: Since = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--output-json", help="Print JSON with stable names, as --json of other commands does.")
    ] = False,
) -> None:
    """Answer runs that stopped at an interrupt: they become pending, and continue with the answer.

    Give an id, or a filter: then it asks with the number of runs first. The answer is not logged. Exits 1 if a run was
    refused, such as one that does not wait for an answer.

    Examples:
      orcheo-dispatch answer 0b8f6c1e-5d5e-4d0e-9a57-1a2b3c4d5e6f --json '"yes"'
      orcheo-dispatch answer --workflow 3f2a --older-than 1d --json '{"approved": false}' --dry-run
    """
    chosen = selection_of(
        workflow=workflow,
        workspace=workspace,
        status=None,
        error_class=None,
        older_than=older_than,
        since=since,
        dead=False,
    )
    parsed = parse_answer(value)
    runs = None if run is None else [run]
    _repair("answer", runs, chosen, limit, None, dry_run=dry_run, yes=yes, as_json=as_json, answer=parsed)


def _repair(
    command: str,
    runs: list[str] | None,
    chosen: Selection | None,
    limit: int | None,
    reason: str | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    from_start: bool = False,
    answer: str | None = None,
) -> None:
    """Repair the runs with these ids, or those that the filter chooses."""
    if runs and chosen is not None:
        raise SettingsError(f"{command}: ids of runs cannot be combined with a filter")
    if not runs and chosen is None:
        raise SettingsError(f"{command}: expected ids of runs, or a filter such as --workflow")
    if runs and limit is not None:
        raise SettingsError("--limit cannot be used without a filter")
    if chosen is not None:
        refuse_unasked(command, yes=yes, dry_run=dry_run)
    settings = ready(writes=True)
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.operators.repairs import repair
    from orcheo_dispatch.shared.ledger.operators.selection import Action

    action, by = Action(command), author(reason)
    with open_engine(settings, role=command) as engine:
        if chosen is None:
            done = repair(engine, runs or [], action, by, dry_run=dry_run, from_start=from_start, answer=answer)
        else:
            many = repair_many(
                engine,
                chosen,
                action,
                by,
                limit=limit,
                yes=yes,
                dry_run=dry_run,
                from_start=from_start,
                answer=answer,
            )
            if many is None:
                say("nothing was changed")
                raise typer.Exit(1)
            done = many
    if as_json:
        screen.print_json([each.as_json() for each in done])
    elif chosen is not None:
        say_many(done, command, dry_run=dry_run)
    else:
        would = "would be " if dry_run else ""
        for each in done:
            said = f"refused: {each.refused}" if each.refused else f"{would}{each.status_before} -> {each.status_after}"
            say(plain(f"{each.run_id}  {said}"))
    raise typer.Exit(1 if any(each.refused for each in done) else 0)
