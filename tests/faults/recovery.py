"""The time from a fault to recovery, out of the history.

A fault harms the runs that were created before it began and had not ended. One of them has recovered at the first
**sign of life** after that: it is claimed, or seen to wait in Redis; it begins, or its worker beats; or it has ended,
whenever that was. What a dead worker or a lost message held gives no such sign until somebody else takes it up. That a
claim is marked as published is none: its message may be lost by then. The time counts from the end of the fault: of an
outage, from the server being back. Where only one process is paused or cut off, the others can help at once, and it
counts from the beginning.

A healthy run that waits in a long queue gives no sign for up to a lease, so the figures are upper bounds. Another
fault before recovery makes them longer; after the faults of `BOUNDED` the schedule keeps quiet for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.history import TERMINAL, History
from tests.faults.injector import Injected
from tests.faults.plan import Kind

NEVER = float("inf")
_SIGNS = frozenset({"claimed", "waiting", "running", "beat"})
_IN_FLIGHT_SECONDS = 0.1
"""What a process had sent before it was struck may be committed a little later."""
_OF_ONE_PROCESS = frozenset({Kind.PAUSE_WORKER, Kind.PAUSE_DISPATCHER, Kind.PAUSE_BEAT, Kind.CUT_OFF_WORKER})
_FINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out", "lost", "skipped"})


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long the slowest of the runs that a fault could harm took to recover; NEVER where one has not."""

    kind: Kind
    harmed: int
    seconds: float
    slowest: str | None


def recovery_of(fault: Injected, history: History) -> Recovery:
    """Return how long recovery from one fault took."""
    since = fault.began_at if fault.kind in _OF_ONE_PROCESS else fault.ended_at
    times = {
        run_id: max(0.0, _recovered_at(run_id, fault.began_at, since, history) - since)
        for run_id in history.statuses_of
        if _open_at(run_id, fault.began_at, history)
    }
    slowest = max(times, key=lambda run_id: times[run_id], default=None)
    return Recovery(fault.kind, len(times), times[slowest] if slowest else 0.0, slowest)


def longest(recoveries: list[Recovery]) -> dict[Kind, Recovery]:
    """Return the slowest recovery of each kind of fault."""
    found: dict[Kind, Recovery] = {}
    for recovery in recoveries:
        if recovery.kind not in found or recovery.seconds > found[recovery.kind].seconds:
            found[recovery.kind] = recovery
    return found


def _open_at(run_id: str, at: float, history: History) -> bool:
    before = [status for status in history.statuses_of[run_id] if status.at <= at]
    return bool(before) and before[-1].after not in TERMINAL


def _recovered_at(run_id: str, began: float, since: float, history: History) -> float:
    ends = (s.at for s in history.statuses_of[run_id] if s.at > began and s.after in TERMINAL)
    signs = (
        move.at
        for move in history.moves_of.get(run_id, [])
        if (move.at > since + _IN_FLIGHT_SECONDS and move.sign in _SIGNS)
        or (move.at > began and move.sign == "settled" and move.outcome in _FINAL)
    )
    return min([*ends, *signs], default=NEVER)
