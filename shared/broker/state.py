"""Track whether Redis is unavailable, log each change of state once, and reconnect quickly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kombu.connection import Connection

from orcheo_dispatch.shared.broker.backoff import Backoff
from orcheo_dispatch.shared.broker.faults import Fault, classify, problem
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.text.redaction import error_line


class BrokerState:
    """Whether Redis is unavailable; logs each change once. Thread-safe."""

    def __init__(self, role: str, on_lost: Callable[[], None] | None = None) -> None:
        """`on_lost` is called on each failure that is reported to `lost`."""
        self._role = role
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self.away = False
        """Whether the last request to Redis failed, for whatever reason."""
        self._fault: Fault | None = None
        self._problem = ""

    def lost(self, error: BaseException) -> None:
        """Record that a request to Redis failed."""
        fault = classify(error)
        with self._lock:
            changed = not self.away or fault is not self._fault
            self.away, self._fault, self._problem = True, fault, problem(error)
        if self._on_lost is not None:
            self._on_lost()
        if changed:
            log.warning("broker_unavailable", role=self._role, fault=fault.value, reason=error_line(error))

    @property
    def problem(self) -> str | None:
        """The current problem in one line, or None: an outage, a full server, or one that refuses us."""
        return self._problem if self.away else None

    def back(self) -> None:
        """Record that Redis answered."""
        with self._lock:
            changed, self.away, self._fault = self.away, False, None
        if changed:
            log.info("broker_reconnected", role=self._role)


def reconnect(connection: Connection, broker: BrokerState, callback: Callable[[], None] | None = None) -> Connection:
    """Connect, retrying until it succeeds; `callback` is called after each failed attempt and may raise to stop."""
    backoff = Backoff()

    def failed(error: BaseException, _: float) -> None:
        broker.lost(error)
        time.sleep(backoff.next())

    # Without the pauses of kombu, which grow linearly and have no jitter.
    connection.ensure_connection(failed, None, interval_start=0, interval_step=0, interval_max=0, callback=callback)
    return connection
