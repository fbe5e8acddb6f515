"""Search for an order of the operations on one run in which each answer is the one of the specification.

An order is allowed if no operation comes before one that was answered before it was invoked: linearizability,
M. Herlihy and J. Wing, 1990. The search is that of J. Wing and C. Gong, *Testing and Verifying Concurrent Objects*,
1993; it remembers which operations and state it has seen, as in G. Lowe, *Testing for Linearizability*, 2017. An
operation whose answer was lost may come anywhere after its invocation, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.histories.operations import Operation
from tests.histories.specification import START, State, legal

MOST_STATES = 300_000


@dataclass(frozen=True, slots=True)
class Illegal:
    """No order explains the answers. `order` is a longest one that was found, `state` what it leads to."""

    order: list[Operation] = field(default_factory=list)
    state: State = START
    stuck: list[Operation] = field(default_factory=list)
    """Operations of which one would have to come next."""
    undecided: bool = False
    """Whether the search was given up."""

    def __str__(self) -> str:
        if self.undecided:
            return f"not decided within {MOST_STATES:,} states"
        last = f", after {self.order[-1]}" if self.order else ""
        return f"none of these can be next: {'; '.join(map(str, self.stuck))}; in {self.state}{last}"


def check(operations: Sequence[Operation], *, most_states: int = MOST_STATES) -> Illegal | None:
    """Return None if the history of a run is legal."""
    ordered = sorted(operations, key=lambda each: each.invoked)
    needed = sum(1 << index for index, each in enumerate(ordered) if each.must_happen)
    if not needed:
        return None
    seen: set[tuple[int, State]] = {(0, START)}
    way: list[tuple[int, State, int]] = [(0, START, -1)]
    """Done so far, the state, and which operation came last: from the first to where the search is."""
    branches = [_next(ordered, 0, START)]
    furthest: tuple[int, list[int], int, State] = (0, [], 0, START)
    while branches:
        step = next(branches[-1], None)
        if step is None:
            branches.pop()
            way.pop()
            continue
        done, state, index = step
        if (done & needed) == needed:
            return None
        if (done, state) in seen:
            continue
        if len(seen) >= most_states:
            return Illegal(undecided=True)
        seen.add((done, state))
        way.append((done, state, index))
        branches.append(_next(ordered, done, state))
        if (done & needed).bit_count() > furthest[0]:
            furthest = ((done & needed).bit_count(), [each for _, _, each in way[1:]], done, state)
    _, order, done, state = furthest
    stuck = [each for _, each in _candidates(ordered, done) if each.must_happen]
    return Illegal([ordered[index] for index in order], state, stuck)


def _next(ordered: Sequence[Operation], done: int, state: State) -> Iterator[tuple[int, State, int]]:
    """Yield each step that is allowed: what is done then, the state, and the operation."""
    tried: list[Operation] = []
    for index, operation in _candidates(ordered, done):
        if not operation.must_happen:
            # Of lost operations that ask for the same, the first one stands for all.
            if any(_asks_the_same(operation, each) for each in tried):
                continue
            tried.append(operation)
        for after in legal(state, operation):
            yield done | 1 << index, after, index


def _candidates(ordered: Sequence[Operation], done: int) -> Iterator[tuple[int, Operation]]:
    """Yield the operations that may come next: no other one was answered before they were invoked."""
    left = [(index, each) for index, each in enumerate(ordered) if not done >> index & 1]
    first_answer = min((each.answered for _, each in left if each.must_happen), default=float("inf"))
    for index, each in left:
        if each.invoked > first_answer:
            return
        yield index, each


def _asks_the_same(one: Operation, other: Operation) -> bool:
    return (one.verb, one.fence, one.worker, one.lease, one.asked) == (
        other.verb,
        other.fence,
        other.worker,
        other.lease,
        other.asked,
    )
