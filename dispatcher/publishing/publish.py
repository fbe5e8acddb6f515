"""Publish claims in messages: one `(run_id, fence)` per message if there are few claims, several if there are many."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import batched

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from orcheo_dispatch.shared.broker.app import broker_errors, send_claims
from orcheo_dispatch.shared.broker.celery_app import App
from orcheo_dispatch.shared.broker.faults import is_read_only
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import MAX_CLAIMS_PER_MESSAGE, Claim
from orcheo_dispatch.shared.ledger.processes import Workers

_TRIES = 3
_MESSAGES_A_WORKER = 4
"""Minimum number of messages per worker that a batch of claims is split into, so that every worker gets some."""
_MESSAGES_OF_CAPACITY = 4
"""A message carries at most this fraction (1/n) of the concurrency of the smallest worker, which must have room."""


class Publisher:
    """Sends the messages that workers take runs from."""

    def __init__(self, app: App, installation: Installation) -> None:
        self._app = app
        self._installation = installation

    def publish(
        self, claims: Sequence[Claim], *, per_message: int = 1, queue: str | None = None
    ) -> tuple[list[Claim], BrokerError | None]:
        """Publish claims in order; return those that were sent, and the error that stopped it, if any.

        A message may have reached Redis although sending it failed. That is harmless: its claims are
        released, the next claims have higher fences, and the stray message begins nothing.
        """
        published: list[Claim] = []
        try:
            with broker_errors(), self._app.producer_or_acquire() as producer:
                for message in batched(claims, per_message):
                    for attempt in self._retrying():
                        with attempt, broker_errors():
                            send_claims(self._app, self._installation, message, producer, queue=queue)
                    published.extend(message)
        except BrokerError as error:
            if is_read_only(error):
                self._app.forget_connections()
            return published, error
        return published, None

    @staticmethod
    def _retrying() -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(BrokerError),
            wait=wait_exponential_jitter(initial=0.05, max=0.5, jitter=0.05),
            stop=stop_after_attempt(_TRIES),
            reraise=True,
        )


def claims_per_message(claims: int, workers: Workers) -> int:
    """Return how many claims each message carries.

    A message costs Celery a few milliseconds, whatever its size. One claim per message is best for latency and for an
    even spread, so a message carries more only if there are enough for every worker to get its share.
    """
    share = claims // (_MESSAGES_A_WORKER * max(1, workers.alive))
    return max(1, min(share, workers.smallest // _MESSAGES_OF_CAPACITY, MAX_CLAIMS_PER_MESSAGE))
