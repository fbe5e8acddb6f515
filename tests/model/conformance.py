"""Compare the changes that were seen in a real database with the changes that the model allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from tests.faults.history import History
from tests.model.explore import Explored, edge, explore
from tests.model.protocol import Protocol


def unknown_changes(history: History) -> Iterator[str]:
    """Yield each change of a row of the ledger, or of a run's status, that no state of the model allows."""
    known = _explored()
    for run_id, moves in history.moves_of.items():
        state, fence = None, 0
        for move in moves:
            if (state, fence) != (move.state, move.fence):
                change = edge(state, move.state, fence, move.fence)
                if change not in known.edges:
                    yield f"{run_id}: ledger {change[0]} -> {change[1]}, fence {change[2]}"
            state, fence = move.state, move.fence
    for status in history.statuses:
        if status.before not in (None, status.after) and (status.before, status.after) not in known.statuses:
            yield f"{status.run_id}: status {status.before} -> {status.after}"


@cache
def _explored() -> Explored:
    """Search once per process; two claims and one fault contain each change that there is."""
    return explore(Protocol(fences=2, faults=1))
