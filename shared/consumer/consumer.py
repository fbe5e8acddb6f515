"""A modified Celery consumer: it reconnects quickly, logs each change of state once, and survives any message.

Celery's own prints the whole body of a message that it cannot use, exits on one that is not even JSON, backs off
for up to half a minute, and may stay up without consuming. See `shared/broker/app.py` for the related settings.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from celery import bootsteps, signals
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.connection import Connection
from kombu.exceptions import OperationalError as KombuOperationalError

from orcheo_dispatch.shared.broker.backoff import Backoff
from orcheo_dispatch.shared.broker.state import BrokerState, reconnect
from orcheo_dispatch.shared.consumer.channel import Channel, say_malformed
from orcheo_dispatch.shared.consumer.intake import Intake
from orcheo_dispatch.shared.process.progress import EXIT_STALLED, exit_now

_LOGGER = logging.getLogger(__name__)
_STEADY_SECONDS = 2.0

# Errors of the connection. None of them can be caused by a message, in contrast to kombu's list, which has KeyError.
_CONNECTION_ERRORS = (OSError, redis.ConnectionError, redis.TimeoutError, redis.ResponseError, KombuOperationalError)


class Consumer(CeleryConsumer):
    """The consumer of dispatchers and workers: the setting `worker_consumer` of their apps."""

    def __init__(self, *args: Any, intake: Intake, on_lost: Callable[[], None], **kwargs: Any) -> None:
        """`on_lost` is called each time that Redis does not answer; the other arguments are Celery's."""
        self.broker = BrokerState("consumer", on_lost)
        self.intake = intake
        self.received = 0
        """Number of messages received so far."""
        self._connected_at = float("-inf")
        self._given_up = False
        self._backoff = Backoff()
        self._held = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(*args, **kwargs)

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        """Return a connection whose channels survive any message and take none while this consumer is paused."""
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        connection.transport.Channel = partial(Channel, self)
        return self.ensure_connected(connection)

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, retrying until it succeeds."""
        reconnect(conn, self.broker, state.maybe_shutdown)
        self._connected_at = time.monotonic()
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Log it once."""
        self.broker.lost(exc)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Log it once, and release the connection."""
        self.broker.lost(exc)
        super().on_connection_error_after_connected(exc)
        if time.monotonic() - self._connected_at < _STEADY_SECONDS:
            # Redis accepts connections but answers with errors: its disk is full, it is a replica, or it is loading.
            time.sleep(self._backoff.next())

    @property
    def steady(self) -> bool:
        """Whether there is a connection and Redis answers on it."""
        return self.connection is not None and not self.broker.away

    @property
    def problem(self) -> str | None:
        """The current problem with Redis in one line, or None."""
        return None if self.steady else self.broker.problem or "not connected to Redis"

    def note_steady(self) -> None:
        """Report Redis as available once a connection has been stable: some servers accept and then refuse."""
        if self.connection is not None and time.monotonic() - self._connected_at >= _STEADY_SECONDS:
            self.broker.back()
            self._backoff.reset()

    def may_take(self) -> bool:
        """Return whether to take one more message; called by the event loop before each."""
        # Set first: a thread that makes room in between sees it and wakes us.
        self._held = True
        self._held = self.intake.paused() or self.intake.in_hand() >= self.pool.num_processes
        return not self._held

    def room_made(self) -> None:
        """Make the event loop check at once whether it may take a message; callable from any thread.

        Otherwise it checks when its connection has an event or a timer is due, which may take a second.
        """
        if self._held:
            os.eventfd_write(self._wake, 1)

    def register_with_event_loop(self, hub: Any) -> None:
        """Register with a new event loop, and listen for `room_made` as well."""
        super().register_with_event_loop(hub)
        hub.add_reader(self._wake, self._awake)

    def _awake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def has_room(self) -> bool:
        """Return whether Redis should now deliver a waiting message to this process."""
        return (
            self.connection is not None
            and self.blueprint.state == bootsteps.RUN
            and not self.intake.paused()
            and self.intake.in_hand() < self.pool.num_processes
        )

    def restart_connection(self) -> None:
        """Make the event loop drop its connection and open a new one; callable from any thread."""
        self.call_soon(_fail)

    def give_up(self) -> None:
        """End the process, so that its service manager restarts it; callable from any thread, repeatedly.

        The first call acts like SIGTERM, but with exit code 1: running work is drained. If the event loop does not
        respond, a later call ends the process once no remaining work could have anything to save.
        """
        if not self._given_up:
            self._given_up = True
            signals.worker_shutting_down.send(sender=self.hostname, sig="STALLED", how="Warm", exitcode=EXIT_STALLED)
            state.should_stop = EXIT_STALLED
        elif not self.intake.busy():
            exit_now()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return the handler of messages; no content of a message makes it raise."""
        take = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            self.received += 1
            try:
                if _is_delayed(message.headers):
                    raise ValueError("a message of ours is never delayed, and never expires")
                take(message)
            except _CONNECTION_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - anyone who can write to Redis can send anything
                self._refuse(message, error)

        return on_message

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Refuse a message whose body cannot be read, without quoting it."""
        self._refuse(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        """Refuse a message that names no task, without quoting it."""
        self._refuse(message, ValueError("no task"))

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:  # noqa: ARG002
        """Refuse a message for a task that is not ours, without quoting it."""
        self._refuse(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:  # noqa: ARG002
        """Refuse a message that our task cannot take, without quoting it."""
        self._refuse(message, exc)

    def _refuse(self, message: Any, error: BaseException) -> None:
        say_malformed(error)
        if not message.acknowledged:
            message.reject_log_error(_LOGGER, self.connection_errors)


def _is_delayed(headers: Any) -> bool:
    return isinstance(headers, dict) and any(headers.get(name) for name in ("eta", "expires", "group", "chord"))


def _fail() -> None:
    raise ConnectionResetError("the consumer stalled")
