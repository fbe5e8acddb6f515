"""Messages in the queue of the API's pushes that belong to other applications or other installations."""

from __future__ import annotations

import time

from orcheo_dispatch.shared.broker.app import HINT_QUEUE
from orcheo_dispatch.shared.logs.lines import log

KEPT_SECONDS = 3600.0
"""Time (seconds) for which a push of an unknown run is left to another installation before it is removed."""
_KEPT_RUNS = 10_000
_TASKS_NAMED = 100
_SAY_SECONDS = 600.0


class Foreign:
    """Remembers which pushes belong to others, and logs once who else uses the queue. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[str, float] = {}
        self._named: set[str] = set()
        self._said_at = float("-inf")

    @property
    def said(self) -> bool:
        """Whether other users of the queue have been logged."""
        return bool(self._named or self._kept)

    def say_task(self, name: str | None) -> None:
        """Log once per task name that a task of another application is in the queue."""
        label = (name or "not a task")[:200]
        if label not in self._named and len(self._named) < _TASKS_NAMED:
            self._named.add(label)
            log.warning("foreign_task_ignored", queue=HINT_QUEUE, task=label)

    def is_kept(self, run_id: str) -> bool:
        """Return whether this push was left to another installation less than `KEPT_SECONDS` ago."""
        return time.monotonic() < self._kept.get(run_id, float("-inf"))

    def keep(self, run_id: str) -> bool:
        """Leave this push to another installation; return False if it has already been left for `KEPT_SECONDS`."""
        now = time.monotonic()
        if run_id in self._kept:
            del self._kept[run_id]
            log.warning("foreign_push_removed", queue=HINT_QUEUE, run_id=run_id, seconds=KEPT_SECONDS)
            return False
        while len(self._kept) >= _KEPT_RUNS:
            del self._kept[next(iter(self._kept))]
        self._kept[run_id] = now + KEPT_SECONDS
        if now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            log.warning("foreign_push_ignored", queue=HINT_QUEUE, run_id=run_id, pushes=len(self._kept))
        return True
