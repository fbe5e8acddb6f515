"""The API's own push, taken as a hint: it wakes the dispatcher, nothing else.

With ORCHEO_INPROCESS_EXECUTION=false the API publishes a Celery message for each run to queue `celery`.
The table already says all that this message says, but it comes at once, and a queue that nobody empties
would grow for ever. So it is emptied: of the API's messages, and of those of Orcheo's own Beat. A message
of anybody else is left where it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dispatcher.push import read_push
from shared.broker import HINT_QUEUE, broker_errors, task_name
from shared.errors import BrokerError, DatabaseError
from shared.logs import log

RUN_HINT = "orcheo_backend.worker.tasks.execute_run"
CRON_HINT = "orcheo_backend.worker.tasks.dispatch_cron_triggers"
_HINTS = frozenset({RUN_HINT, CRON_HINT})

INBOX = "orcheo.hints"
"""Where a message is looked at: it is moved there in one step, so that no crash can lose it."""
_BLOCK_SECONDS = 4
"""Shorter than the client's socket timeout, which takes a longer silence for a dead connection."""
_NUDGE_SECONDS = 0.05
_RETRY_SECONDS = 1.0
_SWEEP_SECONDS = 1.0
_SWEEP = 1000

# Back to the end of the queue that it came from; once, whoever else has seen it in the inbox.
_RETURN = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) > 0 then redis.call('RPUSH', KEYS[2], ARGV[1]) end
"""


class HintListener:
    """Empties the hint queue on a thread of its own and calls back for what it finds.

    `on_run` gets the run and the workspace that a push names and returns whether the run is in this installation's
    table. A message leaves Redis after its callback: where that raises `DatabaseError`, it is tried again.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        on_run: Callable[[str, str | None], bool],
        on_cron: Callable[[], None],
        interval: float,
    ) -> None:
        # Tried again here: the client's own tries would wait on beyond a stop.
        client.set_retry(Retry(NoBackoff(), 0))
        self._client = client
        self._on_run = on_run
        self._on_cron = on_cron
        self._sweep_seconds = min(interval, _SWEEP_SECONDS)
        self._stopping = threading.Event()
        self._foreign = False
        self._warned: set[str] = set()
        self._return = client.register_script(_RETURN)
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop listening; a message that was being looked at stays in Redis."""
        self._stopping.set()
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Ends the wait for a message; again and again, for it may have been just about to begin.
            self._client.connection_pool.disconnect()
            self._thread.join(_NUDGE_SECONDS)

    def _run(self) -> None:
        away, settled = False, False
        while not self._stopping.is_set():
            try:
                with broker_errors():
                    if not settled:
                        self._sort_inbox()
                    if self._foreign:
                        self._sweep()
                    else:
                        self._listen()
                away, settled = False, True
            except Exception as error:
                if self._stopping.is_set():
                    # Whatever a connection raises that is closed under its reader.
                    return
                if not isinstance(error, BrokerError | DatabaseError):
                    raise
                if not away:
                    log.warning("hints_away", reason=str(error))
                away, settled = True, False
                self._stopping.wait(_RETRY_SECONDS)

    def _listen(self) -> None:
        """Wait for the next message. It stays in Redis until it has been told apart."""
        raw: Any = self._client.blmove(HINT_QUEUE, INBOX, _BLOCK_SECONDS, "RIGHT", "LEFT")
        if raw is not None:
            self._sort(raw)

    def _sort(self, raw: Any) -> None:
        name = task_name(raw)
        if name in _HINTS:
            self._call_back(name, raw)
            self._client.lrem(INBOX, 1, raw)
        else:
            # It would be the next to come again, so from now on the queue is swept instead.
            self._return(keys=[INBOX, HINT_QUEUE], args=[raw])
            self._warn(name)
            self._foreign = True

    def _sort_inbox(self) -> None:
        """Finish what a listener that died had begun."""
        messages: Any = self._client.lrange(INBOX, 0, -1)
        for raw in messages:
            self._sort(raw)

    def _sweep(self) -> None:
        """With foreign messages in the queue, take hints from between them, now and then."""
        if self._stopping.wait(self._sweep_seconds):
            return
        messages: Any = self._client.lrange(HINT_QUEUE, -_SWEEP, -1)
        names = {raw: task_name(raw) for raw in messages}
        hints = {raw: name for raw, name in names.items() if name in _HINTS}
        for raw, hint in hints.items():
            self._call_back(hint, raw)
            self._client.lrem(HINT_QUEUE, -1, raw)
        foreign = [name for raw, name in names.items() if raw not in hints]
        for name in foreign:
            self._warn(name)
        self._foreign = bool(foreign)

    def _call_back(self, name: str | None, raw: Any) -> None:
        if name == CRON_HINT:
            self._on_cron()
        elif (push := read_push(raw)) is not None:
            self._on_run(push.run_id, push.workspace_id)
        else:
            log.warning("malformed_push", queue=HINT_QUEUE)

    def _warn(self, name: str | None) -> None:
        label = name or "not a task"
        if label not in self._warned:
            self._warned.add(label)
            log.warning("foreign_task_left_alone", queue=HINT_QUEUE, task=label)
