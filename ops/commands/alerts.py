"""The command `alerts`: list what fires now, or send a test message to each target."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orcheo_dispatch.ops.commands.ready import Json, load_settings, ready
from orcheo_dispatch.shared.errors import DatabaseError, SettingsError
from orcheo_dispatch.shared.text.plain import plain, say

if TYPE_CHECKING:
    from orcheo_dispatch.shared.settings.model import Settings


class Action(StrEnum):
    """What to do instead of listing."""

    TEST = "test"


def alerts(
    action: Annotated[
        Action | None, typer.Argument(help="test: send a test message to each target of ORCHEO_ALERTS_URLS.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the alerts that fire now, or send a test message to each target.

    Dispatchers and workers record alerts where ORCHEO_ALERTS_URLS is set; elsewhere none is listed. `test` exits 1 if a
    target did not accept the message.

    Examples:
      orcheo-dispatch alerts
      orcheo-dispatch alerts test
    """
    if action is Action.TEST:
        _test(load_settings(), as_json=as_json)
    else:
        _list(ready(), as_json=as_json)


def _list(settings: Settings, *, as_json: bool) -> None:
    from rich.table import Table

    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.shared.alerts.book import open_alerts
    from orcheo_dispatch.shared.alerts.messages import duration
    from orcheo_dispatch.shared.database.connections import open_engine

    with open_engine(settings, role="alerts") as engine:
        found = open_alerts(engine, settings.alerts_link)
    if as_json:
        screen.print_json([each.as_json() for each in found])
        return
    if not found:
        off = "" if settings.alerts_urls else "; ORCHEO_ALERTS_URLS is not set here"
        say(f"no alert fires{off}")
        return
    table = Table("alert", "about", "severity", "state", "for", "message", "what to do")
    for each in found:
        sent = "sent" if each.told_at is not None else "-"
        table.add_row(
            each.name, each.subject or "-", each.severity, each.state, duration(each.seconds), sent, each.link
        )
    screen.console.print(table)


def _test(settings: Settings, *, as_json: bool) -> None:
    from orcheo_dispatch.ops import screen
    from orcheo_dispatch.shared.alerts.messages import Origin
    from orcheo_dispatch.shared.alerts.targets import VARIABLE, targets_of

    targets = targets_of(settings)
    if not targets:
        raise SettingsError(f"{VARIABLE} is not set: expected URLs of Apprise, such as json://host/path")
    message = Origin(_installation(settings), settings.alerts_link).trial()
    results = {target.name: target.send(message) for target in targets}
    if as_json:
        screen.print_json([{"target": name, "delivered": why is None, "reason": why} for name, why in results.items()])
    else:
        for name, why in results.items():
            say(plain(f"{name}: {'delivered' if why is None else why}"))
    if any(results.values()):
        raise typer.Exit(1)


def _installation(settings: Settings) -> str:
    """Return the name of the installation, as far as it is known: a test needs no database."""
    from orcheo_dispatch.shared.broker.installation import find_installation

    try:
        return find_installation(settings).name
    except DatabaseError:
        return "unknown: the database does not answer"
