"""Breadth-first search of all states: the first counterexample found is a shortest one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.model.bounds import NEAR
from tests.model.protocol import STUCK, Protocol
from tests.model.rules import Rule
from tests.model.state import State

type Edge = tuple[str | None, str | None, str]
"""A change of a row: its state before and after, and what became of the fence."""


@dataclass(slots=True)
class Explored:
    """What the search has found."""

    protocol: Protocol = field(default_factory=Protocol)
    states: int = 0
    moves: int = 0
    broken: str | None = None
    """The property that does not hold; None if all do."""
    counterexample: list[str] = field(default_factory=list)
    """The steps that lead there."""
    edges: set[Edge] = field(default_factory=set)
    """Changes of the row."""
    statuses: set[tuple[str, str]] = field(default_factory=set)
    """Changes of the run's status."""


def explore(protocol: Protocol) -> Explored:
    """Search until a property is broken or nothing is new; then look for states from which the run cannot end."""
    start = protocol.start()
    came: dict[State, tuple[State, str] | None] = {start: None}
    before: dict[State, list[State]] = {}
    todo, found = deque([start]), Explored(protocol)
    while todo:
        state = todo.popleft()
        for move in protocol.moves(state):
            found.moves += 1
            if move.broken:
                found.states, found.broken = len(came), move.broken
                found.counterexample = [*_way(came, state), move.name]
                return found
            _note(found, state, move.state)
            before.setdefault(move.state, []).append(state)
            if move.state not in came:
                came[move.state] = (state, move.name)
                todo.append(move.state)
    found.states = len(came)
    ends = {state for state in came if protocol.done(state)}
    todo.extend(ends)
    while todo:
        for state in before.get(todo.popleft(), ()):
            if state not in ends:
                ends.add(state)
                todo.append(state)
    stuck = next((state for state in came if state not in ends), None)
    if stuck is not None:
        found.broken, found.counterexample = STUCK, _way(came, stuck)
    return found


def reached(protocol: Protocol, start: State) -> set[State]:
    """Return all states that can be reached from `start`."""
    found, todo = {start}, [start]
    while todo:
        new = {move.state for move in protocol.moves(todo.pop())} - found
        found |= new
        todo += new
    return found


def without(rule: Rule) -> Explored:
    """Search without a rule, in one form of bounds after the other until a property is broken."""
    found = Explored()
    for bounds in NEAR:
        found = explore(Protocol(frozenset({rule}), **bounds))
        if found.broken:
            break
    return found


def edge(before: str | None, after: str | None, old_fence: int, new_fence: int) -> Edge:
    """Return the change, whatever the numbers of the fences are; a row that is new has no earlier fence."""
    if before is None or after is None:
        return before, after, "new" if before is None else "gone"
    return before, after, "kept" if new_fence == old_fence else "raised" if new_fence > old_fence else "lowered"


def _note(found: Explored, state: State, after: State) -> None:
    old, new = state.row, after.row
    if (old.state, old.fence) != (new.state, new.fence):
        found.edges.add(edge(old.state, new.state, old.fence, new.fence))
    if old.status != new.status:
        found.statuses.add((old.status, new.status))


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    """Return the names of the steps from the start to this state."""
    names: list[str] = []
    while (step := came[state]) is not None:
        state, name = step
        names.append(name)
    return names[::-1]
