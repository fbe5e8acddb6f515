"""Channel of a consumer: limits how many messages are taken from Redis, and drops what is not a message."""

from __future__ import annotations

import time
from typing import Any, Protocol

from kombu.transport import virtual
from kombu.transport.redis import Channel as RedisChannel
from kombu.utils.json import dumps

from orcheo_dispatch.shared.consumer.intake import Intake
from orcheo_dispatch.shared.logs.lines import describe, log

_GIVEN_SECONDS = 2.0
"""Seconds after a request for a message until it is read even if there is no room. Redis, which is asked to wait one
second, has answered by then. Short runs make room earlier."""


class Taker(Protocol):
    """The consumer, as its channel uses it."""

    @property
    def intake(self) -> Intake:
        """Return the object that decides whether messages are taken."""

    def may_take(self) -> bool:
        """Return whether to take one more message."""


class QoS(virtual.QoS):
    """Limits what a channel takes: nothing while its consumer is paused, except what Redis has already delivered."""

    def can_consume(self) -> bool:
        """Return whether to take one more message, or the one that Redis has already delivered."""
        consumer, channel = self.channel.consumer, self.channel
        if consumer.may_take() and super().can_consume():
            return True
        given = channel._in_poll and channel.asked_at + _GIVEN_SECONDS < time.monotonic()  # noqa: SLF001 - of kombu's
        return bool(given and consumer.intake.gives_back())

    def restore_unacked(self) -> list[Any]:
        """Return messages that nobody has taken up to their queues.

        Those that Redis does not accept are published again when their leases have expired. Kombu would write them to a
        file and print them.
        """
        super().restore_unacked()
        return []


class Channel(RedisChannel):
    """A channel that drops anything that is not a message. Kombu's channel would end the worker or reconnect."""

    def __init__(self, consumer: Taker, *args: Any, **kwargs: Any) -> None:
        self.consumer = consumer
        self.asked_at = time.monotonic()
        """Time of the last request for a message (`time.monotonic()`)."""
        super().__init__(*args, **kwargs)
        # Kombu's own constructor replaces it, because messages are not acknowledged to Redis.
        self.QoS: Any = QoS

    def _restore(self, message: Any, leftmost: bool = False) -> None:  # noqa: ARG002 - as in kombu
        """Return a message to the head of its queue, so that it is delivered before all that were published later.

        Raises the errors of redis-py. Kombu appends the message if messages are not acknowledged to Redis, or if
        `leftmost` is set; its `_do_restore_message` prints a message that Redis refuses.
        """
        payload, info = message.serializable(), message.delivery_info
        priority = self._get_message_priority(payload, reverse=False)
        with self.conn_or_acquire() as client:
            for queue in self._lookup(info["exchange"], info["routing_key"]):
                client.rpush(self._q_for_pri(queue, priority), dumps(payload))

    def _brpop_start(self, timeout: float | None = None) -> None:
        self.asked_at = time.monotonic()
        super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            say_malformed(error)
            return True


def say_malformed(error: BaseException) -> None:
    """Log that a message cannot be used, without quoting it."""
    log.warning("malformed_message", **describe(error))
