"""What one run, alone and without concurrency, may answer: `outcomes` of a verb in a state.

A third description of the protocol, after `tests/model` and `tests/protocol`: this one knows the answers that callers
get. Of time it knows one thing, that a lease lasts as long as it was given for. A claim and a published claim are one
state here: no answer tells them apart. Policies, retries by policy, questions and deleted runs are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.histories.operations import Answer, Became, Held, Lost, Operation, Verb

ENDED = ("succeeded", "failed", "cancelled")
_CLOCK_SECONDS = 0.05
"""By which the database's clock may be off from the machine's monotonic one, within a lease."""
_STATUS_OF = {"timed_out": "failed", "lost": "failed", "requeued": "pending"}
"""Of a running run that is settled with this outcome, where they differ."""


class State(NamedTuple):
    """A run and its row in the ledger."""

    status: str | None = None
    row: str | None = None
    """`queued` (claimed or published), `running` or `settled`; None while there is no row."""
    fence: int = 0
    worker: str | None = None
    outcome: str | None = None
    slot: str = "held"
    attempts: int = 0
    refunded: int = 0
    held_until: float = 0.0
    """Before which the lease cannot have expired, by the clock of the operations."""

    @property
    def attempt(self) -> int:
        """The number of the attempt that a worker receives."""
        return max(1, self.attempts - self.refunded)


START = State()
type Outcomes = Iterator[tuple[State, Answer]]


def legal(state: State, operation: Operation) -> Iterator[State]:
    """Yield the states after an operation with this answer; none if no answer of the specification is the recorded one.

    An operation whose answer was lost yields only the states that it changes: otherwise it may as well not be.
    """
    for after, answer in _OUTCOMES[operation.verb](state, operation):
        match operation.answer:
            case Lost.LOST:
                if after != state:
                    yield after
            case Became(row, outcome):
                if after != state and (after.row, after.outcome) == (row, outcome):
                    yield after
            case recorded if recorded == answer:
                yield after


def _create(s: State, _: Operation) -> Outcomes:
    if s.status is None:
        yield s._replace(status="pending"), True


def _read(s: State, _: Operation) -> Outcomes:
    yield s, s.status


def _cancel(s: State, _: Operation) -> Outcomes:
    """Without a condition: Orcheo's API reads, and writes later."""
    yield s._replace(status="cancelled"), True


def _claim(s: State, o: Operation) -> Outcomes:
    """Take a pending run that nobody holds, under a higher fence than all before."""
    if s.status == "pending" and s.row in (None, "settled") and o.fence > s.fence:
        yield s._replace(row="queued", fence=o.fence, worker=None, outcome=None), o.fence


def _release(s: State, o: Operation) -> Outcomes:
    if _queued(s, o):
        outcome = "released" if s.status == "pending" else _of_ended(s)
        yield _settled(s, outcome), outcome


def _begin(s: State, o: Operation) -> Outcomes:
    """Begin a pending run under the current fence, once; settle the claim of a run that is not pending."""
    if not _queued(s, o):
        yield s, (Held.REFUSED,)
        return
    yield s, (Held.LOCKED,)
    if s.status == "pending":
        begun = s._replace(
            status="running",
            row="running",
            worker=o.worker,
            outcome=None,
            attempts=s.attempts + 1,
            held_until=o.invoked + o.lease,
        )
        yield begun, ("begun", begun.attempt)
    else:
        after = _settled(s, _of_ended(s))
        yield after, ("skipped", after.slot == "due")


def _recover(s: State, o: Operation) -> Outcomes:
    """Extend the lease of who began the run under this fence, and of nobody else."""
    if _held(s, o):
        yield s._replace(held_until=max(s.held_until, o.invoked + o.lease)), s.attempt
        yield s, Held.LOCKED
    else:
        yield s, None


def _heartbeat(s: State, o: Operation) -> Outcomes:
    """Extend the lease of who holds the run, and of nobody else."""
    if _held(s, o):
        yield s._replace(held_until=max(s.held_until, o.invoked + o.lease)), True
        yield s, False
    else:
        yield s, None


def _checkpoint(s: State, o: Operation) -> Outcomes:
    """Store a checkpoint of who holds the run. `asked`: whether a step has been finished."""
    if _held(s, o):
        yield s._replace(refunded=s.attempts if o.asked == (True,) else s.refunded), True
    else:
        yield s, False


def _settle(s: State, o: Operation) -> Outcomes:
    """End a run of who holds it; an end that the API wrote before stands. `asked`: outcome, status, refund, keeps."""
    if not _held(s, o):
        yield s, None
        return
    yield s, Held.LOCKED
    outcome, status, refund, keeps_slot = o.asked
    refunded = min(s.attempts, s.refunded + bool(refund))
    if s.status == "running":
        after = s._replace(status=str(status), row="settled", outcome=str(outcome), refunded=refunded)
        if not keeps_slot:
            after = _slot_due(after)
        yield after, (outcome, True, after.slot == "due")
    else:
        after = _settled(s._replace(refunded=refunded), _of_ended(s))
        yield after, (after.outcome, False, after.slot == "due")


def _refuse(s: State, o: Operation) -> Outcomes:
    if _queued(s, o) and s.status == "pending":
        after = _settled(s._replace(status="failed", worker=o.worker), "failed")
        yield after, after.slot == "due"


def _reap(s: State, o: Operation) -> Outcomes:
    """End or requeue a run whose lease has expired. `asked`: the policy, and how many attempts there are."""
    policy, most = o.asked
    if s.row != "running" or o.answered < s.held_until - _CLOCK_SECONDS:
        return
    if s.status != "running":
        after = _settled(s, _of_ended(s))
    elif policy == "hold":
        return
    elif policy == "requeue" and s.attempts - s.refunded < int(str(most)):
        after = s._replace(status="pending", row="settled", outcome="requeued")
    else:
        after = _settled(s._replace(status="failed"), "lost")
    yield after, (s.fence, after.outcome)


def _retry(s: State, _: Operation) -> Outcomes:
    if s.status == "failed" and s.row == "settled":
        yield s._replace(status="pending", outcome="requeued", refunded=s.attempts), True


def _adopt(s: State, _: Operation) -> Outcomes:
    """Take the slot of a run that was cancelled while nobody had claimed it."""
    if s.status == "cancelled" and s.row in (None, "settled") and s.slot == "held":
        yield _settled(s, "cancelled"), True


def _return_slot(s: State, _: Operation) -> Outcomes:
    if s.slot == "due":
        yield s._replace(slot="returned"), True


def _settled_by_somebody(s: State, o: Operation) -> Outcomes:
    """Settle the row in any way that there is. `asked`: the outcome that was seen."""
    (outcome,) = o.asked
    if s.fence != o.fence or s.row not in ("queued", "running"):
        return
    if s.row == "running" and s.status == "running":
        status = _STATUS_OF.get(str(outcome), str(outcome))
        for refunded in {s.refunded, min(s.attempts, s.refunded + 1)}:
            yield _settled(s._replace(status=status, refunded=refunded), str(outcome)), True
    elif s.row == "queued" and s.status == "pending":
        yield _settled(s, "released"), True
    else:
        yield _settled(s, _of_ended(s)), True


def _final(s: State, _: Operation) -> Outcomes:
    row = (s.row, max(s.fence, 1), s.outcome, s.slot, s.attempts, s.refunded) if s.row else None
    yield s, (s.status, row)


def _queued(s: State, o: Operation) -> bool:
    return s.row == "queued" and s.fence == o.fence


def _held(s: State, o: Operation) -> bool:
    return s.row == "running" and s.fence == o.fence and o.worker in (s.worker, None)


def _of_ended(s: State) -> str:
    """Return the outcome of a claim whose run somebody else has ended, or made pending."""
    return "cancelled" if s.status == "cancelled" else "skipped"


def _settled(s: State, outcome: str) -> State:
    after = s._replace(row="settled", outcome=outcome)
    return _slot_due(after) if after.status in ENDED else after


def _slot_due(s: State) -> State:
    return s._replace(slot="due") if s.slot == "held" and s.status in ENDED else s


_OUTCOMES: dict[Verb, Callable[[State, Operation], Outcomes]] = {
    Verb.CREATE: _create,
    Verb.READ: _read,
    Verb.CANCEL: _cancel,
    Verb.CLAIM: _claim,
    Verb.RELEASE: _release,
    Verb.BEGIN: _begin,
    Verb.RECOVER: _recover,
    Verb.HEARTBEAT: _heartbeat,
    Verb.CHECKPOINT: _checkpoint,
    Verb.SETTLE: _settle,
    Verb.REFUSE: _refuse,
    Verb.REAP: _reap,
    Verb.RETRY: _retry,
    Verb.ADOPT: _adopt,
    Verb.RETURN_SLOT: _return_slot,
    Verb.SETTLED: _settled_by_somebody,
    Verb.FINAL: _final,
}
