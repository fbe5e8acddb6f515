"""Read the API's pushes as hints: each wakes the dispatcher and names a run and its workspace.

With ORCHEO_INPROCESS_EXECUTION=false the API publishes a Celery message for each run to queue `celery`.
Without a consumer the queue would grow without bound, so the messages of the API and of Orcheo's own Beat are removed.
Messages of other applications and pushes of other installations stay in place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orcheo_dispatch.dispatcher.wakeups.foreign import Foreign
from orcheo_dispatch.dispatcher.wakeups.push import read_push
from orcheo_dispatch.shared.broker.app import HINT_QUEUE, broker_errors, task_name
from orcheo_dispatch.shared.broker.backoff import Backoff
from orcheo_dispatch.shared.broker.sweep import Sweep
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.model import Push
from orcheo_dispatch.shared.logs.lines import describe, log

RUN_HINT = "orcheo_backend.worker.tasks.execute_run"
CRON_HINT = "orcheo_backend.worker.tasks.dispatch_cron_triggers"
_HINTS = frozenset({RUN_HINT, CRON_HINT})
_NEEDLE = "orcheo_backend.worker.tasks."
"""Part of both names."""

OLD_INBOX = "orcheo.hints"
"""List in which earlier releases inspected a message: a process that died may have left some there."""
_BLOCK_SECONDS = 4
"""Shorter than the client's socket timeout, after which a silent connection counts as dead (seconds)."""
_NUDGE_SECONDS = 0.05
_SWEEP_SECONDS = 1.0
_OLD_INBOX_MESSAGES = 1000

# Return a message to the end of the queue that it came from; once, even if another process has seen it in the inbox.
_RETURN = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) > 0 then redis.call('RPUSH', KEYS[2], ARGV[1]) end
"""


class HintListener:
    """Consumes the hint queue on its own thread and calls callbacks for the hints.

    `on_pushes` gets the pushes that wait, at most `PIECE` at a time, and returns for each whether its run is in this
    installation's table, or leaves it out if it is to be retried. A message is removed from Redis after its callback;
    if that raises `DatabaseError`, it is retried.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        on_pushes: Callable[[Sequence[Push]], Mapping[Push, bool]],
        on_cron: Callable[[], None],
        interval: float,
    ) -> None:
        # Retried here, because the client's own retries would continue after a stop.
        client.set_retry(Retry(NoBackoff(), 0))
        self._client = client
        self._on_pushes = on_pushes
        self._on_cron = on_cron
        self._sweep_seconds = min(interval, _SWEEP_SECONDS)
        self._stopping = threading.Event()
        self._foreign = Foreign()
        self._sweep = Sweep(client, HINT_QUEUE, needle=_NEEDLE, take=self._take)
        self._sweeping = True
        self._return = client.register_script(_RETURN)
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop listening; a message that was being inspected stays in Redis."""
        self._stopping.set()
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Interrupts the wait for a message; repeatedly, since the wait may begin just after an attempt.
            self._client.connection_pool.disconnect()
            self._thread.join(_NUDGE_SECONDS)

    def _run(self) -> None:
        away, settled = False, False
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                with broker_errors(self._client):
                    if not settled:
                        self._empty_old_inbox()
                        self._look_through()
                    elif self._sweeping:
                        if not self._stopping.wait(self._sweep_seconds):
                            self._look_through()
                    else:
                        self._listen()
                away, settled = False, True
                backoff.reset()
            except Exception as error:  # noqa: BLE001
                if self._stopping.is_set():
                    # The error of a connection that was closed while being read.
                    return
                if not isinstance(error, BrokerError | DatabaseError):
                    # A bug must not end the thread: nothing else empties the queue.
                    log.error("hints_failed", **describe(error))
                elif not away:
                    log.warning("hints_unavailable", reason=str(error))
                away, settled = True, False
                self._stopping.wait(backoff.next())

    def _listen(self) -> None:
        """Wait for a message and take out the oldest ones; they stay in their places in the meantime.

        Moving the last message of a list to the end of the same list changes nothing, and blocks while the list is
        empty. So no message ever leaves its place, and consumers of other applications find them in order.
        """
        raw: Any = self._client.blmove(HINT_QUEUE, HINT_QUEUE, _BLOCK_SECONDS, "RIGHT", "RIGHT")
        if raw is None:
            return
        # Otherwise they would be the next ones again, so from now on the queue is scanned instead.
        self._sweeping = not self._sweep.oldest()

    def _look_through(self) -> None:
        """Remove the hints from among foreign messages."""
        self._sweeping = self._sweep.once() > 0
        if self._sweeping and not self._foreign.said:
            name = task_name(self._client.lindex(HINT_QUEUE, -1) or b"")
            # Otherwise it arrived during the scan.
            if name not in _HINTS:
                self._foreign.say_task(name)

    def _take(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        """Call the callbacks for these messages; yield those that may be removed."""
        pushes: dict[Push, list[bytes]] = {}
        for raw in messages:
            name = task_name(raw)
            if name == CRON_HINT:
                self._on_cron()
                yield raw
            elif name != RUN_HINT:
                self._foreign.say_task(name)
            elif (push := read_push(raw)) is None:
                log.warning("malformed_push", queue=HINT_QUEUE)
                yield raw
            elif not self._foreign.is_kept(push.run_id):
                pushes.setdefault(push, []).append(raw)
        answered = self._on_pushes(list(pushes)) if pushes else {}
        for push, ours in answered.items():
            kept = not ours and (self._foreign.is_kept(push.run_id) or self._foreign.keep(push.run_id))
            if not kept:
                yield from pushes[push]

    def _empty_old_inbox(self) -> None:
        """Process the messages that a listener of an earlier release left in its inbox when it died."""
        messages: Any = self._client.lrange(OLD_INBOX, 0, _OLD_INBOX_MESSAGES - 1)
        taken: Iterable[Any] = self._take(raw for raw in messages if task_name(raw) in _HINTS)
        for raw in taken:
            self._client.lrem(OLD_INBOX, 1, raw)
        for raw in messages:
            # Does nothing for those that were removed.
            self._return(keys=[OLD_INBOX, HINT_QUEUE], args=[raw])
