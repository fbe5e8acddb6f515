"""Tell of an outage of Postgres, from the memory of one process: the tables of alerts are unavailable then."""

from __future__ import annotations

import time
from collections.abc import Callable

from orcheo_dispatch.shared.alerts.book import RETRY_SECONDS
from orcheo_dispatch.shared.alerts.conditions import Found
from orcheo_dispatch.shared.alerts.messages import Key, Message, Origin
from orcheo_dispatch.shared.alerts.rules import Rule


class Outage:
    """One alert of one process. Each dispatcher sends its own message; a restarted one has forgotten that it did."""

    def __init__(self, rule: Rule, *, repeat: float, calm: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rule = rule
        self._repeat, self._calm = repeat, calm
        self._clock = clock
        self._since: float | None = None
        self._seen_at = self._retry_at = float("-inf")
        self._told_at: float | None = None
        self._sending = False

    def turn(self, origin: Origin, found: Found | None) -> Message | None:
        """Note whether the condition is true, None if unknown; return the message that is due, if any."""
        now = self._clock()
        if found:
            self._since = now if self._since is None else self._since
            self._seen_at = now
        elif found is None and self._since is not None:
            self._seen_at = now
        if self._since is None:
            return None
        if not found and found is not None and self._told_at is None and not self._sending:
            self._since = None
            return None
        if self._sending or now < self._retry_at:
            return None
        return self._due(origin, now, self._since, true=found != {})

    def record(self, key: Key, *, delivered: bool) -> None:
        """Note whether the last message was delivered."""
        self._sending = False
        now = self._clock()
        if not delivered:
            self._retry_at = now + RETRY_SECONDS
        elif key.resolved:
            self._since = self._told_at = None
        else:
            self._told_at = now

    def _due(self, origin: Origin, now: float, since: float, *, true: bool) -> Message | None:
        message = None
        if not true:
            if now - self._seen_at >= self._calm:
                message = origin.recovery(self.rule, "", 0.0, self._seen_at - since)
        elif self._told_at is None:
            if now - since >= self.rule.hold:
                message = origin.alert(self.rule, "", 0.0, now - since, again=False)
        elif now - self._told_at >= self._repeat:
            message = origin.alert(self.rule, "", 0.0, now - since, again=True)
        self._sending = message is not None
        return message
