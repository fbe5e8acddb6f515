"""Print `status` once or repeatedly."""

from __future__ import annotations

import sys
import threading

from rich.console import Group
from rich.live import Live
from sqlalchemy import Engine

from orcheo_dispatch.ops import screen
from orcheo_dispatch.shared.errors import DatabaseError, SchemaError
from orcheo_dispatch.shared.ledger import status as queries
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.plain import plain, say


def status_of(engine: Engine, settings: Settings) -> queries.Status:
    """Return what `status` shows. Raises `DatabaseError`."""
    return queries.read_status(engine, triggers=settings.triggers, every_trigger=settings.takes_every_trigger)


def watch(engine: Engine, settings: Settings, interval: float, *, as_json: bool) -> None:
    """Show it again and again, for ever; while the database is unavailable say so. Raises `SchemaError`."""
    pause = threading.Event()
    if as_json or not sys.stdout.isatty():
        while True:
            _print_one(engine, settings, as_json=as_json)
            pause.wait(interval)
    seen: queries.Status | None = None
    with Live(console=screen.console, auto_refresh=False) as live:
        while True:
            try:
                seen, away = status_of(engine, settings), None
            except SchemaError:
                raise
            except DatabaseError as error:
                away = screen.away_view(error)
            parts = [part for part in (away, screen.status_view(seen) if seen else None) if part is not None]
            live.update(Group(*parts, "", screen.looked_view(interval)), refresh=True)
            pause.wait(interval)


def _print_one(engine: Engine, settings: Settings, *, as_json: bool) -> None:
    """Print one status; where the database is unavailable, one line on stderr, so that stdout stays what it is."""
    try:
        found = status_of(engine, settings)
    except SchemaError:
        raise
    except DatabaseError as error:
        say(f"orcheo-dispatch: database unavailable: {plain(str(error))}", to=sys.stderr)
        return
    if as_json:
        screen.print_json_line(found.as_json())
    else:
        screen.console.print(screen.looked_view(None), screen.status_view(found), "")
    sys.stdout.flush()
