"""Rows to write for ended executions, and the database's answer."""

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
"""Large outputs take their time, and are no reason to take a statement for stuck."""


@dataclass(frozen=True, slots=True)
class End:
    """An ended execution and what is to be written for it."""

    execution: Execution
    ending: Ending | None
    """None where that is not this worker's to say."""
    settled: Settled | None = None
    """None where nothing was changed: the run is another's by now."""


@dataclass(frozen=True, slots=True)
class Written:
    """What one statement came to."""

    done: list[End]
    """Settled, or no longer this worker's."""
    locked: list[End]
    """A row of the run is locked."""


def write(store: Store, ends: Sequence[End], seconds: float) -> Written:
    """Write these endings in one transaction, within this many seconds and some more for large outputs.

    Raises `DatabaseError`; then none of them was written, or it is unknown whether they were.
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
