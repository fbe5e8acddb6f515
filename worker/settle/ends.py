"""Write the ends of executions, and sort them by the database's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, Settled
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.worker.execution import Execution

LOCK_SECONDS = 1.0
"""Lock timeout (seconds) for locks that are not skipped: a locked table, or rows that a trigger locks."""
_SECONDS_A_BYTE = 1 / 2_000_000
"""Additional timeout per byte of output (seconds), so that writing a large output does not count as stuck."""


@dataclass(frozen=True, slots=True)
class End:
    """An ended execution and the ending to write for it."""

    execution: Execution
    ending: Ending | None
    """None if this worker must not write one."""
    settled: Settled | None = None
    """None if nothing was changed, because another process holds the run by now."""


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one statement."""

    done: list[End]
    """Settled, or no longer held by this worker."""
    locked: list[End]
    """Another transaction has locked a row of the run."""


def write(store: Store, ends: Sequence[End], seconds: float) -> Written:
    """Write these endings in one transaction, within this many seconds plus additional time for large outputs.

    Raises `DatabaseError`: then none of them was written, or it is unknown whether they were.
    """
    endings: dict[Claim, Ending] = {end.execution.claim: end.ending for end in ends if end.ending is not None}
    size = sum(len(ending.changes) for ending in endings.values())
    settlement = store.settle_all(endings, lock_timeout=LOCK_SECONDS, timeout=seconds + size * _SECONDS_A_BYTE)
    done, locked = [], []
    for end in ends:
        claim = end.execution.claim
        if claim in settlement.locked:
            locked.append(end)
        else:
            done.append(End(end.execution, end.ending, settlement.settled.get(claim)))
    return Written(done, locked)
