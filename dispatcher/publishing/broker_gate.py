"""Decide whether messages can be published to Redis; after a failure, probe it with growing delays."""

from __future__ import annotations

import time
from collections.abc import Collection

import redis

from orcheo_dispatch.shared.broker.app import probe_writing
from orcheo_dispatch.shared.broker.backoff import Backoff
from orcheo_dispatch.shared.broker.held import Held, held_claims
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.broker.state import BrokerState
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics


class BrokerGate:
    """Closes at a failure and reopens when a write to the queue of runs succeeds. Not thread-safe."""

    def __init__(self, broker: redis.Redis, installation: Installation, metrics: DispatcherMetrics) -> None:
        self._broker = broker
        self._installation = installation
        self._state = BrokerState("publisher", metrics.broker_failed)
        self._backoff = Backoff()
        self._retry_at = 0.0

    @property
    def problem(self) -> str | None:
        """What is wrong with Redis, in one line; None if the last request to it succeeded."""
        return self._state.problem

    @property
    def delay(self) -> float:
        """Seconds until the next attempt to reach Redis."""
        return max(0.0, self._retry_at - time.monotonic())

    def probe(self) -> str | None:
        """Return why messages cannot be published now, or None. A closed gate probes Redis only after a delay."""
        if self._state.problem is None or self.delay:
            return self._state.problem
        try:
            probe_writing(self._broker, self._installation.runs)
        except BrokerError as error:
            self.failed(error)
            return str(error)
        self._backoff.reset()
        self._state.back()
        return None

    def held(self, claims: Collection[Claim]) -> Held | None:
        """Return which of these claims have their messages in Redis, or None if Redis does not answer."""
        try:
            return held_claims(self._broker, self._installation, claims)
        except BrokerError as error:
            self.failed(error)
            return None

    def failed(self, error: BrokerError) -> None:
        """Note that a request to Redis failed."""
        self._state.lost(error)
        self._retry_at = time.monotonic() + self._backoff.next()
