"""Beat's schedule: a tick a poll interval and, with an API to ask, a cron entry. `celery -A dispatcher.beat beat`."""

from __future__ import annotations

import os
import socket
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from celery.signals import beat_init

from shared.broker import BEAT_HEADER, CRON, DISPATCH_QUEUE, TICK, make_app
from shared.entry import lazy_app
from shared.ledger import ProcessKind
from shared.logs import log
from shared.processes import Process
from shared.settings import Settings

_EXPIRY_INTERVALS = 2


def make_beat_app(settings: Settings) -> Celery:
    """Return the app whose schedule Beat runs. Several Beats do no harm: ticks are coalesced.

    A tick that nobody took within two intervals expires, so that a dispatcher that comes back meets
    none of the past. The schedule is kept in memory: it holds nothing worth a file.
    """
    app = make_app("orcheo-beat", settings)
    beat_id = str(uuid4())
    identity = {BEAT_HEADER: {"id": beat_id, "host": socket.gethostname(), "pid": os.getpid()}}

    def say_started(**_: Any) -> None:
        log.info("beat_started", beat_id=beat_id, seconds=settings.poll_interval)

    beat_init.connect(say_started, weak=False)
    app.conf.beat_schedule = {
        "tick": {
            "task": TICK,
            "schedule": settings.poll_interval,
            "options": {
                "queue": DISPATCH_QUEUE,
                "expires": max(1.0, _EXPIRY_INTERVALS * settings.poll_interval),
                "headers": identity,
            },
        }
    }
    if settings.api_url:
        app.conf.beat_schedule["cron"] = {
            "task": CRON,
            "schedule": settings.cron_interval,
            "options": {"queue": DISPATCH_QUEUE, "expires": settings.cron_interval},
        }
    return app


def beat_of(header: Any) -> Process | None:
    """Return the Beat that a tick's header names, or None where it names none."""
    try:
        return Process(ProcessKind.BEAT, id=UUID(header["id"]), host=str(header["host"])[:255], pid=int(header["pid"]))
    except (TypeError, KeyError, ValueError):
        return None


def __getattr__(name: str) -> Any:
    """Make `app` when the `celery` command asks for it, not at import."""
    return lazy_app(name, __name__, make_beat_app)
