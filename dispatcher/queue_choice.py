"""Which queue to publish to: our own, or that of earlier releases while only workers of theirs are alive.

A worker of this release says in Redis that it reads our queue. Where none says so and the ledger knows live workers,
they are of an earlier release, as in the middle of an upgrade or on the way back from one. A mistake costs nothing: a
worker of this release moves what it finds in the old queue.
"""

from __future__ import annotations

import time
from typing import Any

import redis

from shared.broker import broker_errors
from shared.errors import BrokerError
from shared.installation import Installation
from shared.logs import log
from shared.store import Store

_FRESH_SECONDS = 5.0


class QueueChoice:
    """Chooses, and asks again every five seconds. Not thread-safe."""

    def __init__(self, store: Store, broker: redis.Redis, installation: Installation, *, lease: float) -> None:
        self._store = store
        self._broker = broker
        self._installation = installation
        self._lease = lease
        self._queue = installation.runs
        self._chosen_at = float("-inf")

    def queue(self) -> str:
        """Return the queue to publish to. Raises `DatabaseError`."""
        now = time.monotonic()
        if now - self._chosen_at >= _FRESH_SECONDS:
            self._chosen_at = now
            queue = self._choose()
            if queue != self._queue:
                log.warning("queue_changed", queue=queue)
            self._queue = queue
        return self._queue

    def _choose(self) -> str:
        try:
            with broker_errors():
                read: Any = self._broker.exists(self._installation.readers)
        except BrokerError:
            # Publishing fails as well, and says why.
            return self._queue
        if read or not self._store.live_workers(lease=self._lease).alive:
            return self._installation.runs
        return self._installation.old_runs
