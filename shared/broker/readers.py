"""Record in Redis which workers read the queue of this release; workers of earlier releases do not.

While workers of both releases are alive, for example during an upgrade, runs go to the queue of earlier releases. Their
workers read no other queue, and those of this release move messages from there as they have room. So every worker gets
its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import redis

from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.ledger.store import Store

_NOTE_SECONDS = 30.0
"""Seconds added to the lease: the note of a killed worker must not expire before the ledger considers it lost."""
_MOST_PUT_BACK = 1000
_NONE, _NEW = b"0", b"1"
"""Values of a worker's key: it drains, or it reads the queue of this release. Any other value means that it drains."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The live workers, grouped by the queue that they read; those that drain read none."""

    new: frozenset[str]
    """IDs of workers that read the queue of this release."""
    old: frozenset[str]
    """IDs of workers of earlier releases."""


class Readers:
    """Reads and writes the notes. Methods raise errors of redis-py, and `DatabaseError` if they read the ledger."""

    def __init__(self, client: redis.Redis, installation: Installation, store: Store, *, lease: float) -> None:
        """`lease` is that of workers, in seconds: the ledger decides which of them are alive."""
        self._client = client
        self._installation = installation
        self._store = store
        self._lease = lease

    def note(self, worker_id: UUID, *, draining: bool = False) -> None:
        """Record that this worker reads the queue of this release or, while it drains, none; repeat each second."""
        value = _NONE if draining else _NEW
        self._client.set(self._installation.reader(str(worker_id)), value, px=int(1000 * (self._lease + _NOTE_SECONDS)))

    def forget(self, worker_id: UUID) -> None:
        """Delete the note of a worker that is no longer in the ledger."""
        self._client.delete(self._installation.reader(str(worker_id)))

    def survey(self) -> Survey:
        """Return which live workers read which queue."""
        ids = sorted(self._store.live_workers(lease=self._lease).ids)
        if not ids:
            return Survey(frozenset(), frozenset())
        notes: Any = self._client.mget([self._installation.reader(each) for each in ids])
        by_id = dict(zip(ids, notes, strict=True))
        new = frozenset(each for each, note in by_id.items() if note == _NEW)
        return Survey(new, frozenset(each for each, note in by_id.items() if note is None))

    def put_back(self) -> int:
        """Move at most 1000 waiting messages from our queue to that of earlier releases; return how many.

        Used when no live worker reads our queue. If all are moved, the oldest stay in front: they are taken next.
        """
        waiting: Any = self._client.llen(self._installation.runs)
        moved = 0
        for _ in range(min(int(waiting), _MOST_PUT_BACK)):
            moved += (
                self._client.lmove(self._installation.runs, self._installation.old_runs, "LEFT", "RIGHT") is not None
            )
        return moved
