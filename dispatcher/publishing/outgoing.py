"""Publish the claims of a poll, release those that could not be published, and mark those that wait as published."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from orcheo_dispatch.dispatcher.publishing.broker_gate import BrokerGate
from orcheo_dispatch.dispatcher.publishing.publish import Publisher, claims_per_message
from orcheo_dispatch.dispatcher.publishing.queue_choice import QueueChoice
from orcheo_dispatch.dispatcher.steps import Steps
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.processes import Workers
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.traces.claims import ClaimTraces

MARK_SECONDS = 1.0
"""Seconds after which a claim that was published and still waits for a worker is marked as published. Most runs have
begun by then, and cost one write less."""
_MANY = 8
"""Minimum number of claims in a poll for a message to carry more than one."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How many claims were published, how many were released, and the error that prevented the rest."""

    published: int = 0
    released: int = 0
    error: str | None = None


class Outgoing:
    """Publishes claims, for a poller."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        installation: Installation,
        publisher: Publisher,
        gate: BrokerGate,
        queue_choice: QueueChoice,
        traces: ClaimTraces,
    ) -> None:
        self._settings = settings
        self._installation = installation
        self._store = store
        self._publisher = publisher
        self._gate = gate
        self._queue_choice = queue_choice
        self._traces = traces
        self._workers = Workers()
        self._unmarked: deque[tuple[float, Sequence[Claim]]] = deque()
        """Claims that were published, and when (`time.monotonic()`), the oldest first."""

    @property
    def problem(self) -> str | None:
        """What is wrong with Redis, in one line; None if the last request to it succeeded."""
        return self._gate.problem

    @property
    def delay(self) -> float:
        """Seconds until the next attempt to reach Redis."""
        return self._gate.delay

    def probe(self) -> str | None:
        """Return why messages cannot be published now, or None."""
        return self._gate.probe()

    def redirect(self) -> None:
        """Move waiting messages to the queue of earlier releases if only workers of those are alive."""
        if not self._gate.problem:
            self._queue_choice.queue()

    def mark(self, steps: Steps, *, after: float = MARK_SECONDS) -> None:
        """Mark as published what was sent at least `after` seconds ago and has not begun.

        The mark is for operators: nothing that dispatches depends on it. So it is not repeated if it fails.
        """
        due: list[Claim] = []
        while self._unmarked and self._unmarked[0][0] + after <= time.monotonic():
            due += self._unmarked.popleft()[1]
        if due:
            steps.run("publish", lambda: self._store.mark_published(due), None)

    def send(self, claims: list[Claim], steps: Steps) -> Sent:
        """Publish claims, and release those that could not be published."""
        began = time.monotonic()
        published, error = self._publish(claims)
        if published:
            self._unmarked.append((time.monotonic(), published))
        self._traces.published(published, began)
        if error is None:
            return Sent(len(published))
        self._gate.failed(error)
        out = set(published)
        unpublished = [claim for claim in claims if claim not in out]
        released = steps.run("publish", lambda: self._store.release(unpublished, reason="broker_away"), 0)
        self._traces.unpublished(unpublished, began)
        return Sent(len(published), released, str(error))

    def _publish(self, claims: list[Claim]) -> tuple[list[Claim], BrokerError | None]:
        """Publish each claim to the queue that its policy names; return those that were sent, and the error if any."""
        by_queue: dict[str | None, list[Claim]] = {}
        for claim in claims:
            by_queue.setdefault(claim.queue, []).append(claim)
        published: list[Claim] = []
        for name, some in by_queue.items():
            sent, error = self._publish_to(name, some)
            published += sent
            if error is not None:
                return published, error
        return published, None

    def _publish_to(self, name: str | None, claims: list[Claim]) -> tuple[list[Claim], BrokerError | None]:
        # Workers of earlier releases consume no named queue.
        queue = self._queue_choice.queue() if name is None else self._installation.queue(name)
        if len(claims) < _MANY:
            return self._publisher.publish(claims, queue=queue)
        try:
            self._workers = self._store.live_workers(lease=self._settings.worker_lease)
        except DatabaseError as reason:
            # The claims are committed and must be published: use the size of the last messages.
            log.debug("workers_unknown", reason=str(reason))
        per_message = claims_per_message(len(claims), self._workers)
        return self._publisher.publish(claims, per_message=per_message, queue=queue)
