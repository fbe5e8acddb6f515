"""The queue of runs of earlier releases, whose name says nothing of the installation: ours are moved to our own.

A dispatcher of an earlier release publishes there, and so does that of any other installation on this Redis. A message
is ours where the ledger knows its runs. Everything else stays where it is, in its order.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

from shared.broker import EXECUTE_RUN, broker_errors, claims_of
from shared.errors import BrokerError, DatabaseError
from shared.installation import Installation
from shared.logs import log
from shared.store import Store
from shared.sweep import Sweep

_IDLE_SECONDS = 1.0
_BUSY_SECONDS = 0.05
_STOP_SECONDS = 5.0
_READER_SECONDS = 30
_ASK_AGAIN_SECONDS = 30.0
_OTHERS_REMEMBERED = 10_000

# Moved in one step, by value: it is never in neither queue, and two workers that see it move it once.
_MOVE = """
local moved = redis.call('LREM', KEYS[1], -1, ARGV[1])
if moved > 0 then redis.call('LPUSH', KEYS[2], ARGV[1]) end
return moved
"""


class OldQueue:
    """Moves our messages from the old queue to the new one, on a thread of its own."""

    def __init__(self, client: redis.Redis, installation: Installation, store: Store) -> None:
        self._client = client
        self._installation = installation
        self._store = store
        self._move = client.register_script(_MOVE)
        self._sweep = Sweep(client, installation.old_runs, needle=EXECUTE_RUN, take=self._look_at)
        self._moved = 0
        self._left = 0
        self._said_left = False
        self._others: dict[str, float] = {}
        """Runs that are not in our ledger, and until when that is not asked again."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="old-queue", daemon=True)

    def start(self) -> None:
        """Look at the old queue from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)
        self._client.close()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = _IDLE_SECONDS
            try:
                with broker_errors(self._client):
                    if self._sweep_once():
                        pause = _BUSY_SECONDS
            except (BrokerError, DatabaseError) as error:
                # The consumer and the heartbeat say that a server is unavailable; what waits here waits on.
                log.debug("old_queue_not_read", reason=str(error))

    def _sweep_once(self) -> int:
        """Say that our own queue is read, and sweep the old one; return how many messages were moved."""
        self._client.set(self._installation.readers, 1, ex=_READER_SECONDS)
        waiting: Any = self._client.llen(self._installation.old_runs)
        if not waiting:
            return 0
        self._moved = self._left = 0
        self._sweep.once()
        if self._left and not self._said_left:
            self._said_left = True
            log.warning("foreign_messages_left_alone", queue=self._installation.old_runs, messages=self._left)
        return self._moved

    def _look_at(self, raw: bytes) -> bool:
        """Move a message of ours; never have the sweep remove any."""
        claims = claims_of(raw)
        # A message's claims are of one dispatcher, so the first one answers for all.
        if claims and self._is_ours(claims[0].run_id):
            moved: Any = self._move(keys=[self._installation.old_runs, self._installation.runs], args=[raw])
            self._moved += int(moved)
        else:
            self._left += 1
        return False

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
