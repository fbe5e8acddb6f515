"""LISTEN for inserted runs, if `orcheo-dispatch migrate --notify` has created the trigger.

The trigger enables this: it is checked at start and twice per minute, and without it no connection is held. The next
poll finds runs whose notification was missed, so a failure here delays runs but never loses one.
"""

from __future__ import annotations

import random
import selectors
import socket
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import psycopg
from sqlalchemy import Engine

from orcheo_dispatch.shared.database.connections import (
    connect,
    database_errors,
    prepare_session,
    through_pooler,
    transaction,
)
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.schema.api_table import CHANNEL, TRIGGER_ENABLED, notifies
from orcheo_dispatch.shared.settings.model import Settings

LOOK_SECONDS = 30.0
AFTERWARDS_SECONDS = 0.05
"""Delay after a notification before polling (seconds): transactions that commit meanwhile are covered by that poll."""
_BACKOFF_SECONDS = (0.5, 15.0)


class Hearing(Enum):
    """Whether notifications are received, and if not, why."""

    ON = "listening"
    OFF = "the notification trigger does not exist"
    POOLER = "the connection goes through a pooler: set ORCHEO_DISPATCH_LISTEN_DSN to bypass it"
    ELSEWHERE = "ORCHEO_DISPATCH_LISTEN_DSN leads to a database without the trigger"
    AWAY = "the database is unavailable"


class NotifyListener:
    """Listens on its own thread and connection, and calls `on_notify` after notifications."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        on_notify: Callable[[], None],
        on_change: Callable[[bool], None],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """`on_change` is called with whether notifications are received, whenever this changes."""
        self._dsn = (settings.listen_dsn or settings.postgres_dsn).get_secret_value()
        self._engine = engine
        self._on_notify = on_notify
        self._on_change = on_change
        self._look_seconds = look_seconds
        self.hearing = Hearing.OFF
        self._failures = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)

    def start(self) -> None:
        """Start listening, whenever the trigger exists."""
        # `_bell` is closed to interrupt a wait.
        self._ear, self._bell = socket.socketpair()
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop listening."""
        self._stopping.set()
        self._bell.close()
        self._thread.join(timeout)

    def _run(self) -> None:
        with self._ear:
            while not self._stopping.is_set():
                try:
                    pause = self._turn()
                except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
                    log.error("listen_failed", **describe(error))
                    pause = self._backoff()
                self._stopping.wait(pause)

    def _turn(self) -> float:
        """Listen while the trigger exists and nothing fails; return the seconds until the next turn."""
        try:
            with transaction(self._engine) as connection:
                wanted = notifies(connection)
        except DatabaseError:
            # The poll loop logs it.
            return self._backoff()
        if not wanted:
            self._note(Hearing.OFF)
            return self._look_seconds
        try:
            with database_errors(), connect(self._dsn, role="listen") as direct:
                return self._listen(direct)
        except DatabaseError as error:
            self._note(Hearing.AWAY, str(error))
        except psycopg.Error as error:
            self._note(Hearing.AWAY, type(error).__name__)
        return self._backoff()

    def _listen(self, connection: psycopg.Connection[Any]) -> float:
        if through_pooler(connection):
            self._note(Hearing.POOLER)
            return self._look_seconds
        if not _trigger_enabled(connection):
            self._note(Hearing.ELSEWHERE)
            return self._look_seconds
        # Otherwise a server with an idle session timeout would end this session.
        prepare_session(connection, idle_session_timeout=0)
        connection.execute(f"LISTEN {CHANNEL}")
        self._failures = 0
        self._note(Hearing.ON)
        # Notifications before LISTEN were missed.
        self._on_notify()
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._ear, selectors.EVENT_READ)
            pause = self._look_seconds
            while True:
                # psycopg's own wait is not used, because it wakes up ten times per second.
                ready = selector.select(pause)
                if self._stopping.is_set():
                    return 0.0
                # Several count as one: they only say that there is something to do.
                heard = list(connection.notifies(timeout=0)) if ready else []
                if heard:
                    self._on_notify()
                    pause = AFTERWARDS_SECONDS
                elif pause == AFTERWARDS_SECONDS:
                    self._on_notify()
                    pause = self._look_seconds
                elif not ready and not _trigger_enabled(connection):
                    return 0.0

    def _note(self, hearing: Hearing, reason: str | None = None) -> None:
        """Report whether notifications are received, once per change."""
        if hearing is self.hearing:
            return
        self.hearing = hearing
        self._on_change(hearing is Hearing.ON)
        match hearing:
            case Hearing.ON:
                log.info("listening", channel=CHANNEL)
            case Hearing.OFF:
                log.info("not_listening", reason=hearing.value)
            case _:
                log.warning("not_listening", reason=reason or hearing.value)

    def _backoff(self) -> float:
        first, last = _BACKOFF_SECONDS
        self._failures = min(self._failures + 1, 10)
        # With jitter, so that many dispatchers do not reconnect at the same time (AWS Architecture Blog, 2015).
        return random.uniform(first, min(last, first * 2**self._failures))  # noqa: S311


def _trigger_enabled(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute(TRIGGER_ENABLED).fetchone() == (True,)
