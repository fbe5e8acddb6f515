"""Histories that some order explains, those with lost answers among them, are legal."""

from __future__ import annotations

import pytest

from tests.histories.forged import ANN, BEN, NEW, NOT_BEGUN, OLD, REQUEUED, SETTLED_BY_ANN, Forged, begun, reaped
from tests.histories.operations import Became, Held, Lost, Verb
from tests.histories.search import check

LEGAL = {
    "a run that succeeds": begun().beat().settle().left("succeeded", *SETTLED_BY_ANN),
    "a slot that is returned": begun()
    .settle()
    .return_slot()
    .left("succeeded", "settled", OLD, "succeeded", "returned", 1, 0),
    "a cancel before any claim": Forged()
    .create()
    .cancel("pending")
    .adopt()
    .left("cancelled", "settled", 1, "cancelled", "due", 0, 0),
    "a cancel before the begin": Forged().create().claim().cancel("pending").begin(answer=("skipped", True)),
    "a cancel before the settle": begun().cancel().settle(answer=("cancelled", False, True)),
    "a cancel that overwrites, as the API does": begun().add(Verb.READ, "running").settle().add(Verb.CANCEL),
    "a claim that is released and taken again": Forged().create().claim().release().claim(NEW).begin(NEW).settle(NEW),
    "a stale message": reaped().begin(OLD, ANN, NOT_BEGUN).settle(NEW, BEN),
    "a stale holder": reaped().beat(answer=None).store(answer=False).settle(answer=None).settle(NEW, BEN),
    "a recovery of a run whose row is locked": begun().recover(answer=Held.LOCKED).recover().settle(),
    "a row that is locked": begun().beat(answer=False).settle(answer=Held.LOCKED).settle(),
    "a run that is handed over": begun()
    .settle(asked=REQUEUED, answer=("requeued", True, False))
    .claim(NEW)
    .begin(NEW, BEN),
    "a run that has finished a step": begun().store(progressed=True).wait().reap(attempts=1).claim(NEW).begin(NEW, BEN),
    "a run that is lost": begun()
    .wait()
    .reap((OLD, "lost"), "fail")
    .left("failed", "settled", OLD, "lost", "due", 1, 0),
    "a begin whose answer was lost, and that took effect": Forged()
    .create()
    .claim()
    .begin(answer=Lost.LOST)
    .recover()
    .settle(),
    "a begin whose answer was lost, and that did not": (
        Forged().create().claim().begin(answer=Lost.LOST).release().claim(NEW).begin(NEW, BEN).settle(NEW, BEN)
    ),
    "a settle whose answer was lost, and that took effect": begun()
    .settle(answer=Lost.LOST)
    .settle(answer=None)
    .left("succeeded", *SETTLED_BY_ANN),
    "a settle whose answer was lost, and that did not": begun().settle(answer=Lost.LOST).wait().reap(),
    "a settle whose answer was lost, and that takes effect later": begun()
    .settle(answer=Lost.LOST)
    .beat()
    .wait()
    .beat(answer=None),
    "a reap whose answer was lost": begun().wait().reap(Lost.LOST).beat(answer=None).claim(NEW),
    "a claim whose answer was lost": Forged().create().claim(answer=Lost.LOST).release().claim(NEW),
    "a return of the slot whose answer was lost": begun()
    .settle()
    .add(Verb.RETURN_SLOT, Lost.LOST)
    .left("succeeded", *SETTLED_BY_ANN),
    "a heartbeat that overlaps the settle": begun().settle().beat().overlap(),
    "a heartbeat that overlaps the settle, and comes after it": begun().settle().beat(answer=None).overlap(),
    "a settle by a process that records nothing": begun()
    .add(Verb.SETTLED, Became("settled", "succeeded"), fence=OLD, asked=("succeeded",))
    .beat(answer=None),
}


@pytest.mark.parametrize("forged", LEGAL.values(), ids=LEGAL)
def test_legal_history_is_accepted(forged: Forged) -> None:
    assert check(forged.operations) is None


def test_many_lost_answers_are_decided_quickly() -> None:
    forged = begun()
    for _ in range(30):
        forged.reap(Lost.LOST).settle(answer=Lost.LOST).beat()
    assert check(forged.settle().operations, most_states=5000) is None


def test_search_that_is_given_up_says_so() -> None:
    illegal = check(begun().settle().operations, most_states=2)
    assert illegal is not None
    assert "not decided" in str(illegal)
