"""The commands `policy list`, `set`, `clear` and `explain`: what holds for all runs, a workspace or a workflow."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orcheo_dispatch.ops.commands.pause import All, OfWorkflow, OfWorkspace, Why
from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.ops.runs.author import author
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

app = typer.Typer(
    help="Decide what holds for all runs, for a workspace or for a workflow: limits, priority, queue, rules.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_policies(as_json: Json = False) -> None:
    """List all policies, wider scopes first, with who decided them, when and why.

    Examples:
      orcheo-dispatch policy list
    """
    settings = ready()
    from orcheo_dispatch.ops import policy_views, screen
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.operators.policies import Policies

    with open_engine(settings, role="policy") as engine:
        rows = Policies(engine).listed()
    if as_json:
        screen.print_json([row.as_json() for row in rows])
    elif rows:
        screen.console.print(policy_views.policies_view(rows))
    else:
        say("no policy: the settings of the processes decide")


@app.command("set")
def set_policy(
    every: All = False,
    workspace: OfWorkspace = None,
    workflow: OfWorkflow = None,
    priority: Annotated[
        str | None, typer.Option(help="-5 to 5: each step doubles its share of the turns. none takes it back.")
    ] = None,
    max_running: Annotated[
        str | None, typer.Option("--max-running", help="Maximum number of its runs in progress together; or none.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Maximum number of its runs that begin in any such period: 100/1m; or none.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(help="Queue of its runs, for workers that have it in ORCHEO_WORKER_QUEUES; or none."),
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Maximum duration of a run: 90s, 15m, 2h; or none.")] = None,
    lost_runs: Annotated[
        str | None,
        typer.Option("--lost-runs", help="If a worker is lost: resume, requeue, fail or hold its runs; or none."),
    ] = None,
    retries: Annotated[
        str | None, typer.Option(help="Where a failed run is tried again: step, start or off; or none.")
    ] = None,
    isolation: Annotated[
        str | None, typer.Option(help="Which runs get a process of their own: adaptive, shared or process; or none.")
    ] = None,
    paused: Annotated[
        bool | None,
        typer.Option("--paused/--no-paused", help="Pause it, or let it run although a wider scope is paused."),
    ] = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Set fields of a policy; the other fields stay, and the value none takes a field back.

    In force at the next poll, without a restart. Limits of several scopes hold together; of the other fields, those of
    the workflow come first, then those of its workspace, then those of all runs, then the settings.

    Examples:
      orcheo-dispatch policy set --workflow 3f2a --max-running 5 --rate 100/1m --why "rate limit of the supplier"
    """
    from orcheo_dispatch.ops.runs.fields import parse_fields
    from orcheo_dispatch.ops.runs.scopes import check_scope, find_scope

    check_scope(every, workspace, workflow)
    changes: dict[str, Any] = parse_fields(
        {
            "priority": priority,
            "max-running": max_running,
            "rate": rate,
            "queue": queue,
            "timeout": timeout,
            "lost-runs": lost_runs,
            "retries": retries,
            "isolation": isolation,
        }
    )
    if paused is not None:
        changes["paused"] = paused
    if not changes:
        raise SettingsError("policy set: expected a field, such as --max-running or --queue")
    if every and changes.get("priority") is not None:
        raise SettingsError("--priority cannot be combined with --all: it is relative to other workspaces or workflows")
    settings = ready(writes=True)
    from orcheo_dispatch.ops import policy_views, screen
    from orcheo_dispatch.shared.database.connections import open_engine, transaction
    from orcheo_dispatch.shared.ledger.operators.policies import Policies
    from orcheo_dispatch.shared.ledger.statements.policy import WORKERS_OF_QUEUE

    with open_engine(settings, role="policy") as engine:
        row = Policies(engine).set(find_scope(engine, workspace, workflow), changes, author(why))
        with transaction(engine) as connection:
            served = row.queue is None or connection.scalar(WORKERS_OF_QUEUE, {"queue": row.queue})
    if as_json:
        screen.print_json(row.as_json())
        return
    say(plain(f"{row.scope}: {policy_views.fields_text(row)}"))
    if not served:
        say(f"no live worker consumes queue {row.queue}: runs wait until one with it in ORCHEO_WORKER_QUEUES starts")


@app.command("clear")
def clear_policy(
    every: All = False,
    workspace: OfWorkspace = None,
    workflow: OfWorkflow = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Delete the policy of a scope, with all its fields: wider scopes and the settings decide again.

    Examples:
      orcheo-dispatch policy clear --workflow 3f2a
    """
    from orcheo_dispatch.ops.runs.scopes import check_scope, find_scope

    check_scope(every, workspace, workflow)
    settings = ready(writes=True)
    from orcheo_dispatch.ops import policy_views, screen
    from orcheo_dispatch.shared.database.connections import open_engine
    from orcheo_dispatch.shared.ledger.operators.policies import Policies

    with open_engine(settings, role="policy") as engine:
        scope = find_scope(engine, workspace, workflow)
        row = Policies(engine).clear(scope, author(why))
    if as_json:
        screen.print_json(None if row is None else row.as_json())
    elif row is None:
        say(plain(f"{scope}: there is no policy"))
    else:
        say(plain(f"{scope}: cleared, was {policy_views.fields_text(row)}"))


@app.command("explain")
def explain_policy(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's id, or the beginning of it.")],
    as_json: Json = False,
) -> None:
    """Show what is in force for a workflow, what decided each value, and how much of each limit is in use now.

    Where no policy decides, it shows the settings of this shell: those of the processes may differ.

    Examples:
      orcheo-dispatch policy explain 3f2a
    """
    settings = ready()
    from orcheo_dispatch.ops import policy_views, screen
    from orcheo_dispatch.ops.runs.explain import explain
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="policy") as engine:
        found = explain(engine, workflow, settings)
    if as_json:
        screen.print_json(found.as_json())
    else:
        screen.console.print(policy_views.explanation_view(found))
