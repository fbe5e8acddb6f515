"""When runs may be called lost: not while the dispatcher itself has just been held up."""

from __future__ import annotations

import time


class ReapGate:
    """Closed for a while after polls were held up: whatever held them up may have held up heartbeats as well.

    Workers then get two heartbeat intervals to renew their leases, and after an outage of the server a whole lease.
    """

    def __init__(self, *, lease: float, heartbeat: float) -> None:
        self._lease = lease
        self._grace = min(lease, 2 * heartbeat)
        self._looked_at: float | None = None
        self._not_before = float("-inf")
        self._failed = False
        self._outage_ended = float("-inf")

    def looked(self, at: float) -> None:
        """Note that a poll looked at the ledger; `at` is the time by the clock of the database."""
        held_up = self._looked_at is not None and at - self._looked_at > self._lease
        if self._failed or held_up:
            self._not_before = at + self._grace
        # A clock that was set back must not close the gate for longer.
        self._not_before = min(self._not_before, at + self._grace)
        self._looked_at, self._failed = at, False

    def failed(self) -> None:
        """Note that a poll could not look: a table was locked, say."""
        self._failed = True

    def outage(self) -> None:
        """Note that the server was unavailable."""
        self._failed = True
        self._outage_ended = time.monotonic()

    @property
    def wait(self) -> float:
        """Seconds until runs may be reaped; 0 where they may be now."""
        if self._failed or self._looked_at is None:
            return self._grace
        after_outage = self._outage_ended + self._lease - time.monotonic()
        return max(0.0, self._not_before - self._looked_at, after_outage)
