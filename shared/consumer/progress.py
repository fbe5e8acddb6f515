"""Check that a consumer takes the messages that wait."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from orcheo_dispatch.shared.broker.app import broker_errors
from orcheo_dispatch.shared.consumer.consumer import Consumer
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.metrics.model import ConsumerMetrics
from orcheo_dispatch.shared.process.progress import Watched

CONSUMER_PATIENCE_SECONDS = 5.0


class ConsumerProgress:
    """Detects a stalled consumer: its queues have messages and the process has room, but none arrives.

    Redis delivers at once to a client that waits for a message. So if a queue has messages at check after check, and
    this process has room but receives none, it is not waiting for any, whatever the state of its connection.
    """

    def __init__(self, consumer: Consumer, client: redis.Redis, queues: Sequence[str]) -> None:
        self._consumer = consumer
        self._client = client
        self._queues = queues
        self._received = -1

    def __call__(self) -> bool:
        """Return whether the consumer makes progress; an unavailable Redis does not count as a stall."""
        self._consumer.note_steady()
        received, self._received = self._received, self._consumer.received
        if received != self._received or not self._consumer.has_room():
            return True
        try:
            with broker_errors():
                return not any(self._client.llen(queue) for queue in self._queues)
        except BrokerError:
            return True


def watch_consumer(consumer: Consumer, client: redis.Redis, queues: Sequence[str], metrics: ConsumerMetrics) -> Watched:
    """Return the watch on a consumer: a stall first gets it a new connection; if that fails, the process ends."""

    def restart_connection() -> None:
        metrics.consumer_stalled()
        consumer.restart_connection()

    return Watched(
        "consumer",
        ConsumerProgress(consumer, client, queues),
        (restart_connection, consumer.give_up),
        CONSUMER_PATIENCE_SECONDS,
    )
