"""The command `isolate`: execute the runs of a workflow in processes of their own, or in shared ones again."""

from __future__ import annotations

from typing import Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, ready
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.plain import plain, say


def isolate(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's id, or the beginning of it.")],
    version: Annotated[
        str | None,
        typer.Option(help="Only this version: its id, the beginning of it, or its number. Otherwise all versions."),
    ] = None,
    span: Annotated[
        str | None, typer.Option("--for", help="How long: 90s, 15m, 2h, 3d or 1w. Otherwise until --clear.")
    ] = None,
    why: Annotated[str | None, typer.Option(help="Shown by status, by the status page and in the view.")] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Let its runs share processes again, by whomever it was isolated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have each run of a workflow executed in a process of its own, by workers with ORCHEO_WORKER_ISOLATION=adaptive.

    Workers obey within two seconds; what runs already stays where it is. With --clear, the workflow and all of its
    versions share processes again, or only --version; a version that harms other runs afterwards is isolated again.
    Exits 1 where there is no such workflow or version.

    Examples:
      orcheo-dispatch isolate 7d1c0a52 --for 3d --why 'fills the memory'
      orcheo-dispatch isolate 7d1c0a52 --clear
    """
    if clear and (span is not None or why is not None):
        raise SettingsError("--clear cannot be combined with --for or --why")
    from orcheo_dispatch.ops.runs.moments import parse_span

    seconds = parse_span("--for", span) if span is not None else None
    settings = ready(writes=True)
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.ops.runs.isolate import clear_isolation, set_isolation
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="isolate") as engine:
        done = (
            clear_isolation(engine, workflow, version)
            if clear
            else [set_isolation(engine, workflow, version, why=why, seconds=seconds)]
        )
    if as_json:
        screen.print_json([each.as_json() for each in done])
        return
    for each in done:
        what = "all versions" if each.workflow_version_id is None else f"version {each.workflow_version_id}"
        said = "cleared" if clear else f"isolated until {screen.until_text(each.until)}"
        say(plain(f"{each.workflow_id}, {what}: {said}"))
    if not done:
        say(plain(f"{workflow} is not isolated"))
