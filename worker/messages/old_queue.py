"""Move this installation's messages from the queue of earlier releases, which all installations share, to its own.

Dispatchers of earlier releases publish there, including those of other installations on this Redis. A message is ours
if the ledger knows its runs. All other messages stay where they are, in order. While workers of an earlier release are
alive, only as many messages are moved as this worker has room for: they take the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import redis

from orcheo_dispatch.shared.broker.app import EXECUTE_RUN, broker_errors, claims_of
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.broker.readers import Readers
from orcheo_dispatch.shared.broker.sweep import Sweep
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log

_IDLE_SECONDS = 1.0
_BUSY_SECONDS = 0.05
_STOP_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 30.0
_SURVEY_SECONDS = 5.0
_OTHERS_REMEMBERED = 10_000
_LEAST_WAITING = 8
"""Lower bound of the number of messages that may wait in our queue, for workers with room for fewer runs."""

# Moves a message atomically, by value: it is always in one of the two queues, and two workers that see it move it once.
# If a limit is given, nothing is moved while that many messages wait in the new queue.
_MOVE = """
local most = tonumber(ARGV[2])
if most >= 0 and redis.call('LLEN', KEYS[2]) >= most then return -1 end
local moved = redis.call('LREM', KEYS[1], -1, ARGV[1])
if moved > 0 then redis.call('LPUSH', KEYS[2], ARGV[1]) end
return moved
"""


class OldQueue:
    """Move our messages from the old queue to the new one, on a thread of its own.

    A draining worker moves none. If only workers of an earlier release remain, it moves the messages that wait in the
    new queue back.
    """

    def __init__(
        self,
        client: redis.Redis,
        installation: Installation,
        store: Store,
        *,
        worker_id: UUID,
        room: int,
        lease: float,
        consumes: bool = True,
    ) -> None:
        """`room` is the number of runs that this worker executes at a time, `lease` its lease in seconds.

        Unless it `consumes` the default queue, it moves no messages there, like a worker that drains.
        """
        self._client = client
        self._installation = installation
        self._store = store
        self._worker_id = worker_id
        self._most_waiting = max(room, _LEAST_WAITING)
        self._readers = Readers(client, installation, store, lease=lease)
        self._shared = False
        """Whether workers of an earlier release are alive."""
        self._surveyed_at = float("-inf")
        self._full = False
        self._move = client.register_script(_MOVE)
        self._sweep = Sweep(client, installation.old_runs, needle=EXECUTE_RUN, take=self._look_at)
        self._moved = 0
        self._left = 0
        self._said_left = False
        self._others: dict[str, float] = {}
        """Runs that are not in our ledger, and the `time.monotonic()` until which this is not checked again."""
        self._draining = not consumes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="old-queue", daemon=True)

    def start(self) -> None:
        """Announce that this worker reads our own queue, and start reading the old one."""
        self._turn_once(self._note)
        self._thread.start()

    def drain(self) -> None:
        """Stop moving messages, because this worker takes none; other draining workers need not wait for it."""
        self._draining = True

    def stop(self) -> None:
        """Stop reading the old queue, and move messages back if no other worker reads our own."""
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)
        self._turn_once(self._note)
        self._turn_once(self._put_back)

    def close(self) -> None:
        """Withdraw the announcement that our own queue is read; call it after this worker has deregistered."""
        self._turn_once(lambda: self._readers.forget(self._worker_id))
        self._client.close()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            self._moved, self._full = 0, False
            self._turn_once(self._turn)
            pause = _BUSY_SECONDS if self._moved or self._full else _IDLE_SECONDS

    def _turn_once(self, step: Callable[[], None]) -> None:
        try:
            with broker_errors(self._client):
                step()
        except (BrokerError, DatabaseError) as error:
            # The consumer and the heartbeat report unavailable servers; the messages simply keep waiting.
            log.debug("old_queue_read_failed", reason=str(error))

    def _turn(self) -> None:
        self._note()
        if self._draining:
            self._put_back()
        elif self._client.llen(self._installation.old_runs):
            self._sweep_once()

    def _note(self) -> None:
        self._readers.note(self._worker_id, draining=self._draining)

    def _put_back(self) -> None:
        """Move messages back from the new queue if only workers of an earlier release remain to execute them."""
        if not self._client.llen(self._installation.runs):
            return
        survey = self._readers.survey()
        if survey.old and not survey.new - {str(self._worker_id)}:
            log.info("messages_returned", queue=self._installation.old_runs, messages=self._readers.put_back())

    def _sweep_once(self) -> None:
        """Sweep the old queue for our messages, as long as there is room."""
        now = time.monotonic()
        if now - self._surveyed_at >= _SURVEY_SECONDS:
            self._shared = bool(self._readers.survey().old)
            self._surveyed_at = now
        self._full = self._shared and self._client.llen(self._installation.runs) >= self._most_waiting
        if self._full:
            return
        self._left = 0
        self._sweep.once()
        if self._left and not self._said_left:
            self._said_left = True
            log.warning("foreign_messages_ignored", queue=self._installation.old_runs, messages=self._left)

    def _look_at(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Move our messages, as far as there is room. Always return none, so that the sweep removes nothing."""
        for raw in messages:
            if not self._full:
                self._move_ours(raw)
        return ()

    def _move_ours(self, raw: bytes) -> None:
        claims = claims_of(raw)
        # All claims of a message come from one dispatcher, so it is enough to check the first one.
        if claims and self._is_ours(claims[0].run_id):
            most = self._most_waiting if self._shared else -1
            moved: Any = self._move(keys=[self._installation.old_runs, self._installation.runs], args=[raw, most])
            self._full = moved < 0
            self._moved += max(0, moved)
        else:
            self._left += 1

    def _is_ours(self, run_id: str) -> bool:
        now = time.monotonic()
        if now < self._others.get(run_id, now):
            return False
        if self._store.known([run_id]):
            self._others.pop(run_id, None)
            return True
        while len(self._others) >= _OTHERS_REMEMBERED:
            del self._others[next(iter(self._others))]
        self._others[run_id] = now + _ASK_AGAIN_SECONDS
        return False
