"""The protocol keeps its promises in every state within the bounds, and needs each of its rules."""

from __future__ import annotations

import pytest

from tests.faults.history import History, Move, Status
from tests.model.bounds import NEAR, Bounds
from tests.model.conformance import unknown_changes
from tests.model.explore import explore, reached, without
from tests.model.protocol import STUCK, Protocol
from tests.model.rules import Rule


@pytest.mark.parametrize("bounds", NEAR, ids=str)
def test_every_property_holds_in_every_state(bounds: Bounds) -> None:
    found = explore(Protocol(**bounds))
    assert (found.broken, found.counterexample) == (None, [])
    assert found.states > 50_000
    print(f"{found.states:,} states, {found.moves:,} steps")


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_without_a_rule_there_is_a_counterexample(rule: Rule) -> None:
    """The steps of the counterexample are possible one after the other, and break the same property."""
    found = without(rule)
    assert found.broken, f"nothing breaks without the rule that {rule}"
    print(f"without the rule that {rule}: {found.broken}", *found.counterexample, sep="\n  ")
    protocol = found.protocol
    state, broken = protocol.start(), None
    for name in found.counterexample:
        assert broken is None, "it is the last step that breaks the property"
        move = next(move for move in protocol.moves(state) if move.name == name)
        state, broken = move.state, move.broken
    if found.broken == STUCK:
        assert not any(protocol.done(each) for each in reached(protocol, state))
    else:
        assert broken == found.broken


def _moves(*rows: tuple[str, int]) -> History:
    return History([Move(n, "r", fence, state, state, None, None) for n, (state, fence) in enumerate(rows)], [])


def test_real_changes_are_changes_of_the_model() -> None:
    begun = ("claimed", 5), ("published", 5), ("running", 5), ("running", 5), ("settled", 5)
    assert list(unknown_changes(_moves(*begun, ("claimed", 9), ("running", 9), ("settled", 9)))) == []


@pytest.mark.parametrize(
    "rows",
    [
        [("running", 5)],
        [("claimed", 5), ("claimed", 6)],
        [("claimed", 5), ("running", 6)],
        [("claimed", 5), ("running", 5), ("published", 5)],
        [("claimed", 5), ("running", 5), ("settled", 5), ("running", 5)],
        [("claimed", 5), ("settled", 5), ("claimed", 4)],
        [("claimed", 5), ("settled", 5), ("claimed", 5)],
        [("claimed", 5), ("published", 5), ("claimed", 5)],
    ],
    ids=str,
)
def test_changes_that_no_statement_makes_are_unknown(rows: list[tuple[str, int]]) -> None:
    assert len(list(unknown_changes(_moves(*rows)))) == 1


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_api_may_cancel_over_an_end_that_it_has_not_read(end: str) -> None:
    assert list(unknown_changes(History([], [Status(0, "r", end, "cancelled")]))) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("succeeded", "failed"), ("succeeded", "pending"), ("cancelled", "running"), ("pending", "failed")],
)
def test_changes_of_a_status_that_nobody_may_make_are_unknown(before: str, after: str) -> None:
    assert len(list(unknown_changes(History([], [Status(0, "r", before, after)])))) == 1
