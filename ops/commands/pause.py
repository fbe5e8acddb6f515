"""The commands `pause`, `unpause` and `maintenance`: stop runs from beginning, and let them begin again."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.ops.runs.author import author
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

    from orcheo_dispatch.ops.runs.pauses import Switched

All = Annotated[bool, typer.Option("--all", help="All runs.")]
OfWorkspace = Annotated[str | None, typer.Option("--workspace", help="The runs of this workspace: its id.")]
OfWorkflow = Annotated[
    str | None, typer.Option("--workflow", help="The runs of this workflow: its id, or the beginning of it.")
]
Why = Annotated[str | None, typer.Option(help="Shown to other operators, and in the log of operations.")]


class Switch(StrEnum):
    """Whether something is to be."""

    ON = "on"
    OFF = "off"


def pause(
    why: Annotated[str, typer.Option(help="Shown to other operators, and in the log of operations.")],
    every: All = False,
    workspace: OfWorkspace = None,
    workflow: OfWorkflow = None,
    until: Annotated[
        str | None, typer.Option(help="When the pause ends: 2026-11-23T12:00 (UTC). Otherwise: unpause.")
    ] = None,
    span: Annotated[str | None, typer.Option("--for", help="How long the pause lasts: 90s, 15m, 2h, 3d.")] = None,
    as_json: Json = False,
) -> None:
    """Pause runs: none is claimed and none begins from the next poll on; those that run already continue.

    Examples:
      orcheo-dispatch pause --workflow 3f2a --why "supplier is down" --for 2h
    """
    from orcheo_dispatch.ops.runs.pauses import pause as pause_scope
    from orcheo_dispatch.ops.runs.scopes import check_scope, find_scope

    check_scope(every, workspace, workflow)
    end = _End(until, span)
    settings = ready(writes=True)
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="pause") as engine:
        scope = find_scope(engine, workspace, workflow)
        done = pause_scope(engine, scope, author(why), end.on(engine))
    _print(done, str(scope), as_json, "paused")


def unpause(
    every: All = False,
    workspace: OfWorkspace = None,
    workflow: OfWorkflow = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Take back a pause. A wider scope may still pause these runs: then it says so.

    Examples:
      orcheo-dispatch unpause --workflow 3f2a
    """
    from orcheo_dispatch.ops.runs.pauses import unpause as unpause_scope
    from orcheo_dispatch.ops.runs.scopes import check_scope, find_scope

    check_scope(every, workspace, workflow)
    settings = ready(writes=True)
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="unpause") as engine:
        scope = find_scope(engine, workspace, workflow)
        done = unpause_scope(engine, scope, author(why))
    _print(done, str(scope), as_json, "unpaused" if done.changed else "was not paused")


def maintenance(
    switch: Annotated[Switch, typer.Argument(help="on: no run is claimed and none begins. off: they are again.")],
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Switch maintenance on or off: while it is on, no run is claimed and none begins, whatever policies say.

    Examples:
      orcheo-dispatch maintenance on --why "upgrade of Postgres"
    """
    settings = ready(writes=True)
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.pauses import maintain
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="maintenance") as engine:
        done = maintain(engine, author(why), on=switch is Switch.ON)
    if as_json:
        screen.print_json(done.as_json())
    else:
        say(f"maintenance {'is' if done.changed else 'was already'} {switch.value}")


class _End:
    """When a pause ends, as an operator gave it."""

    def __init__(self, until: str | None, span: str | None) -> None:
        from orcheo_dispatch.ops.runs.moments import parse_moment, parse_span

        if until is not None and span is not None:
            raise SettingsError("--until cannot be combined with --for")
        self._given = until
        self._at = parse_moment("--until", until).at if until is not None else None
        if until is not None and self._at is None:
            raise SettingsError.wrong("--until", until, "a time such as 2026-11-23T12:00 (UTC)")
        self._seconds = parse_span("--for", span) if span is not None else None

    def on(self, engine: Engine) -> datetime | None:
        """Return the end by the clock of the database. Raises `SettingsError` if it is over."""
        from datetime import timedelta

        from orcheo_dispatch.ops.runs.scopes import database_now

        if self._at is None and self._seconds is None:
            return None
        now = database_now(engine)
        if self._seconds is not None:
            return now + timedelta(seconds=self._seconds)
        if self._at is not None and self._at <= now:
            raise SettingsError.wrong("--until", self._given, "a time in the future")
        return self._at


def _print(done: Switched, scope: str, as_json: bool, what: str) -> None:
    from orcheo_dispatch.ops import screen

    if as_json:
        screen.print_json(done.as_json())
        return
    until = f" until {screen.until_text(done.paused_until)} UTC" if done.paused_until else ""
    say(plain(f"{scope}: {what}{until if what == 'paused' else ''}"))
    if what != "paused" and done.paused:
        option = f"--workflow {done.workflow_id}" if done.workflow_id else f"--workspace {done.workspace_id}"
        say(
            plain(
                f"still paused by the policy of {done.paused_by}{until}; to let it run nevertheless: "
                f"orcheo-dispatch policy set {option} --no-paused"
            )
        )
    if done.maintenance:
        say("maintenance is on: no run begins until 'orcheo-dispatch maintenance off'")
