"""Remember for a while the runs for which Postgres refused a change, so that not every poll retries them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.logs.lines import log

FIRST_PAUSE_SECONDS = 30.0
_FIRST_PAUSE_OF_THE_TRANSIENT_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 600.0
_GRACE_SECONDS = 60.0
"""Seconds after the end of its pause until an entry is dropped: the run was retried and not refused."""
MOST = 2000
"""Maximum number of runs that are remembered per step; the run that would be retried first is dropped."""
_TRANSIENT = (Failure.CONFLICT, Failure.LOCKED, Failure.TIMEOUT)
_AT_RAISE = " at RAISE"
_FUNCTION = re.compile(r"PL/pgSQL function ([\w.\"]+)\(")


@dataclass(frozen=True, slots=True)
class _Entry:
    until: float
    pause: float
    reason: str


class Refused:
    """Remembers refusals by step and run. Thread-safe.

    The pause before a run is retried doubles with each consecutive refusal. A run is logged when it is first refused,
    and again if the reason changes.
    """

    def __init__(self, *, on_change: Callable[[str, int], None] = lambda _step, _runs: None) -> None:
        """`on_change` is called with a step and its number of refused runs whenever that may have changed."""
        self._on_change = on_change
        self._steps: dict[str, dict[str, _Entry]] = {}
        self._lock = threading.Lock()

    def skipped(self, step: str) -> list[str]:
        """Return the runs that this step should skip for now."""
        now = time.monotonic()
        with self._lock:
            entries = self._steps.get(step)
            if not entries:
                return []
            for run_id in [run_id for run_id, entry in entries.items() if entry.until + _GRACE_SECONDS < now]:
                del entries[run_id]
            skipped = [run_id for run_id, entry in entries.items() if entry.until > now]
            self._on_change(step, len(entries))
        return skipped

    def note(self, step: str, run_id: str, error: BaseException) -> None:
        """Record that Postgres refused to change this run for the reason in `error`."""
        first = _FIRST_PAUSE_OF_THE_TRANSIENT_SECONDS if failure_of(error) in _TRANSIENT else FIRST_PAUSE_SECONDS
        if self._enter(step, run_id, _Entry(0.0, first, reason_of(error))):
            log.warning("run_refused", run_id=run_id, step=step, reason=reason_of(error))

    def note_held(self, step: str, run_id: str) -> None:
        """Record that another session has locked the ledger row of this run."""
        self._enter(step, run_id, _Entry(0.0, _FIRST_PAUSE_OF_THE_TRANSIENT_SECONDS, "row locked"))

    def _enter(self, step: str, run_id: str, entry: _Entry) -> bool:
        """Store a refusal; return whether the run or its reason is new."""
        now = time.monotonic()
        with self._lock:
            entries = self._steps.setdefault(step, {})
            before = entries.pop(run_id, None)
            again = before is not None and before.reason == entry.reason
            pause = min(before.pause * 2, _LONGEST_PAUSE_SECONDS) if before is not None and again else entry.pause
            if len(entries) >= MOST:
                del entries[min(entries, key=lambda each: entries[each].until)]
            entries[run_id] = replace(entry, until=now + pause, pause=pause)
            self._on_change(step, len(entries))
        return not again


def raised_by_function(error: BaseException) -> bool:
    """Return whether a function or a trigger raised this error, whatever its SQLSTATE."""
    diagnostic = getattr(getattr(error, "orig", None) or error, "diag", None)
    return diagnostic is not None and (diagnostic.context or "").partition("\n")[0].endswith(_AT_RAISE)


def reason_of(error: BaseException) -> str:
    """Return why Postgres refused something: error class, SQLSTATE, constraint and function.

    Never return the text of the error: a constraint or a trigger may quote a run's inputs in it.
    """
    raised: Any = getattr(error, "orig", None) or error
    diagnostic = getattr(raised, "diag", None)
    parts = [f"{type(raised).__name__} ({getattr(raised, 'sqlstate', None) or 'no SQLSTATE'})"]
    if diagnostic is not None:
        if diagnostic.constraint_name:
            parts.append(f"constraint {diagnostic.constraint_name}")
        if found := _FUNCTION.search(diagnostic.context or ""):
            parts.append(f"function {found[1]}")
    return ", ".join(parts)
