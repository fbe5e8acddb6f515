"""Each rule of the specification, broken in a forged history, is found."""

from __future__ import annotations

import pytest

from tests.histories.forged import ANN, BEN, NEW, OLD, REQUEUED, SETTLED_BY_ANN, Forged, begun, reaped
from tests.histories.operations import Became, Held, Lost, Verb
from tests.histories.search import check

ILLEGAL = {
    "a run is created twice": Forged().create().create(),
    "the API reads an old status": begun().settle().add(Verb.READ, "running"),
    "a claim takes a run that is claimed": Forged().create().claim().claim(NEW),
    "a claim takes a run that is under execution": begun().claim(NEW),
    "a claim takes a run that has ended": begun().settle().claim(NEW),
    "a claim repeats a fence": Forged().create().claim().release().claim(OLD),
    "a claim lowers the fence": Forged().create().claim(NEW).release(NEW).claim(OLD),
    "a release under an old fence": Forged().create().claim().release().claim(NEW).release(OLD),
    "a release of a run under execution": begun().release(),
    "a begin without a claim": Forged().create().begin(),
    "a begin under an old fence": Forged().create().claim().release().claim(NEW).begin(OLD),
    "a begin under a fence that nobody has given": Forged().create().claim().begin(NEW),
    "two begins under one fence": begun().begin(worker=BEN, answer=("begun", 2)),
    "a begin of a run that was cancelled": Forged().create().claim().cancel("pending").begin(),
    "a begin that says the wrong attempt": Forged().create().claim().begin(answer=("begun", 2)),
    "a begin of the current claim that is refused": Forged().create().claim().begin(answer=(Held.REFUSED,)),
    "a begin whose claim is locked and was settled long ago": begun().settle().begin(answer=(Held.LOCKED,)),
    "a begin that skips a pending run": Forged().create().claim().begin(answer=("skipped", True)),
    "a begin that leaves the slot of a cancelled run": Forged()
    .create()
    .claim()
    .cancel("pending")
    .begin(answer=("skipped", False)),
    "a worker recovers the run of another": begun().recover(worker=BEN),
    "a worker does not recover its run": begun().recover(answer=None),
    "a heartbeat under an old fence": reaped().beat(),
    "a heartbeat of another worker": begun().beat(worker=BEN),
    "a heartbeat after the settle": begun().settle().beat(),
    "a heartbeat of the holder that is refused": begun().beat(answer=None),
    "a lock reported to who holds nothing": reaped().beat(answer=False),
    "a checkpoint under an old fence": reaped().store(),
    "a checkpoint of another worker": begun().store(worker=BEN),
    "a checkpoint after the settle": begun().settle().store(),
    "a checkpoint of the holder that is refused": begun().store(answer=False),
    "a settle under an old fence": reaped().settle(),
    "a settle of another worker": begun().settle(worker=BEN),
    "a settle before the begin": Forged().create().claim().settle(),
    "two settles under one fence": begun().settle().settle(),
    "a settle of the holder that is refused": begun()
    .settle(answer=None)
    .left("running", "running", OLD, None, "held", 1, 0),
    "a settle that overwrites a cancel": begun().cancel().settle(),
    "a settle that yields to a cancel that nobody made": begun().settle(answer=("cancelled", False, True)),
    "a cancel that both loses and wins": begun()
    .cancel()
    .settle(answer=("cancelled", False, True))
    .left("succeeded", *SETTLED_BY_ANN),
    "a settle that leaves the slot": begun().settle(answer=("succeeded", True, False)),
    "a slot due twice": (begun().settle().return_slot().left("succeeded", *SETTLED_BY_ANN)),
    "a slot returned twice": begun().settle().return_slot().return_slot(),
    "a slot returned of a run under execution": begun().return_slot(),
    "a slot due of a run that is pending again": begun().settle(asked=REQUEUED, answer=("requeued", True, True)),
    "a reap of a lease that has not expired": begun().reap(),
    "a reap of a lease that was renewed": begun().wait(8).beat().wait(5).reap(),
    "a reap of a lease that a recovery renewed": begun().wait(8).recover().wait(5).reap(),
    "a reap of a claim that has not begun": Forged().create().claim().wait().reap(),
    "a reap that requeues under the policy to fail": begun().wait().reap(policy="fail"),
    "a reap that requeues after the last attempt": begun().wait().reap(attempts=1),
    "a reap that fails a run with attempts left": begun().wait().reap((OLD, "lost")),
    "a reap under the policy to hold": begun().wait().reap((OLD, "lost"), "hold"),
    "a reap that overwrites a cancel": begun().cancel().wait().reap((OLD, "lost"), "fail"),
    "a finished step that does not give the attempts back": begun()
    .store(progressed=True)
    .wait()
    .reap()
    .claim(NEW)
    .begin(NEW, BEN, ("begun", 2)),
    "a retry of a run that has succeeded": begun().settle().add(Verb.RETRY),
    "an adoption of a run that is pending": Forged().create().adopt(),
    "an adoption of a run that is claimed": Forged().create().claim().cancel("pending").adopt(),
    "a refusal of a run under execution": begun().add(Verb.REFUSE, True, fence=OLD, worker=ANN),
    "a status that nobody wrote": begun().settle().left("failed", *SETTLED_BY_ANN),
    "an end that is gone": begun().settle().left("pending", *SETTLED_BY_ANN),
    "an attempt that nobody counted": begun().settle().left("succeeded", "settled", OLD, "succeeded", "due", 2, 0),
    "a lost settle that takes effect before it is asked": begun()
    .left("succeeded", *SETTLED_BY_ANN)
    .settle(answer=Lost.LOST),
    "a lost settle that takes effect twice": (
        begun()
        .settle(answer=Lost.LOST, asked=REQUEUED)
        .wait(1)
        .add(Verb.READ, "pending")
        .claim(NEW)
        .begin(NEW, BEN, ("begun", 1))
        .add(Verb.READ, "pending")
    ),
    "an end that nobody but a lost claim could explain": Forged()
    .create()
    .claim(answer=Lost.LOST)
    .left("succeeded", *SETTLED_BY_ANN),
    "a settle seen under a fence that is not the last": reaped().add(
        Verb.SETTLED, Became("settled", "succeeded"), fence=OLD, asked=("succeeded",)
    ),
    "operations in an order that their times forbid": Forged().create().begin().claim(),
}


@pytest.mark.parametrize("forged", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_history_is_found(forged: Forged) -> None:
    illegal = check(forged.operations)
    assert illegal is not None
    assert "none of these can be next" in str(illegal)


@pytest.mark.parametrize("forged", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal_history_is_legal_up_to_one_operation(forged: Forged) -> None:
    """What is found is the broken rule, and no mistake in the history before it."""
    count = next(count for count in range(len(forged.operations) + 1) if check(forged.operations[:count]) is not None)
    assert count >= len(forged.operations) - 1


def test_illegal_history_names_the_operation_that_cannot_be_next() -> None:
    illegal = check(reaped().settle().operations)
    assert illegal is not None
    assert [each.verb for each in illegal.stuck] == [Verb.SETTLE]
    assert illegal.order[-1].verb is Verb.BEGIN
    assert str(OLD) in str(illegal)
