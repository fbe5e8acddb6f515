"""Redis away and back: told once a change of state, and come back to soon."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from kombu.connection import Connection

from shared.logs import log
from shared.redaction import error_line

RETRY_SECONDS = 1.0
"""Redis that is away is asked again after so many seconds at most, give or take a fifth."""
_FIRST_RETRY_SECONDS = 0.1


class BrokerState:
    """Whether Redis is away, told to the log once a change. Thread-safe."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._lock = threading.Lock()
        self.away = False
        self.on_lost: Callable[[], None] = _nothing
        """Called each time that Redis did not answer."""

    def lost(self, error: BaseException) -> None:
        """Note that Redis did not answer."""
        with self._lock:
            changed, self.away = not self.away, True
        self.on_lost()
        if changed:
            log.warning("broker_away", role=self._role, reason=error_line(error))

    def back(self) -> None:
        """Note that Redis answered."""
        with self._lock:
            changed, self.away = self.away, False
        if changed:
            log.info("broker_back", role=self._role)


def reconnect(connection: Connection, broker: BrokerState, callback: Callable[[], None] | None = None) -> Connection:
    """Connect, for as long as it takes; `callback` is called between two tries and may raise to give up."""
    connection.ensure_connection(
        lambda error, _: broker.lost(error),
        None,
        interval_start=_FIRST_RETRY_SECONDS,
        interval_step=_FIRST_RETRY_SECONDS,
        # So that many processes do not come back in step.
        interval_max=RETRY_SECONDS * random.uniform(0.8, 1.2),  # noqa: S311
        callback=callback,
    )
    return connection


def _nothing() -> None:
    """Do nothing."""
