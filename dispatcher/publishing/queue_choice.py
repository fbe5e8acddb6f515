"""Choose the queue to publish to: our own, or that of earlier releases while their workers are alive.

So all workers share the work during an upgrade or its rollback: see
`orcheo_dispatch.shared.broker.readers`.
"""

from __future__ import annotations

import time

import redis

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.broker.readers import Readers
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log

_FRESH_SECONDS = 5.0
_CONFIRM_SECONDS = 2.0
"""An emptied Redis has no notes of workers until each has rewritten its own, within a second."""


class QueueChoice:
    """Chooses, and chooses again every five seconds. Not thread-safe.

    A change to the old queue takes effect only if it is confirmed two seconds later, except for the first choice;
    messages that no worker reads may be moved there before.
    """

    def __init__(self, store: Store, broker: redis.Redis, installation: Installation, *, lease: float) -> None:
        self._broker = broker
        self._installation = installation
        self._readers = Readers(broker, installation, store, lease=lease)
        self._queue = installation.runs
        self._ask_at = float("-inf")
        self._confirms = True

    def queue(self) -> str:
        """Return the queue to publish to. Never raises, since claims must be published.

        Call it also while messages wait: if only workers of earlier releases are alive, messages that wait in the
        queue of this release are moved to theirs.
        """
        now = time.monotonic()
        if now < self._ask_at:
            return self._queue
        queue = self._choose()
        changes = queue != self._queue
        doubtful = changes and queue == self._installation.old_runs and not self._confirms
        self._confirms = doubtful
        self._ask_at = now + (_CONFIRM_SECONDS if doubtful else _FRESH_SECONDS)
        if changes and not doubtful:
            log.warning("queue_changed", queue=queue)
            self._queue = queue
        return self._queue

    def _choose(self) -> str:
        try:
            with broker_errors(self._broker):
                survey = self._readers.survey()
                if not survey.old:
                    return self._installation.runs
                if not survey.new and (moved := self._readers.put_back()):
                    log.warning("messages_returned", queue=self._installation.old_runs, messages=moved)
        except BrokerError:
            # Publishing fails as well, and reports the reason.
            return self._queue
        except DatabaseError:
            # The poll reports it.
            return self._queue
        return self._installation.old_runs
