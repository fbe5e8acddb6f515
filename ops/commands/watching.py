"""Print `status` once or repeatedly."""

from __future__ import annotations

import sys
import threading

from rich.console import Group
from rich.live import Live
from sqlalchemy import Engine

from orcheo_dispatch.ops import screen
from orcheo_dispatch.shared.errors import DatabaseError, SchemaError
from orcheo_dispatch.shared.ledger.status import Status, read_status
from orcheo_dispatch.shared.text.plain import plain, say


def watch(engine: Engine, interval: float, *, as_json: bool) -> None:
    """Show the status repeatedly, until interrupted; report an unavailable database. Raises `SchemaError`."""
    pause = threading.Event()
    if as_json or not sys.stdout.isatty():
        while True:
            _print_one(engine, as_json=as_json)
            pause.wait(interval)
    seen: Status | None = None
    with Live(console=screen.console, auto_refresh=False) as live:
        while True:
            try:
                seen, away = read_status(engine), None
            except SchemaError:
                raise
            except DatabaseError as error:
                away = screen.away_view(error)
            parts = [part for part in (away, screen.status_view(seen) if seen else None) if part is not None]
            live.update(Group(*parts, "", screen.looked_view(interval)), refresh=True)
            pause.wait(interval)


def _print_one(engine: Engine, *, as_json: bool) -> None:
    """Print one status; where the database is unavailable, one line on stderr, so that stdout stays what it is."""
    try:
        found = read_status(engine)
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
