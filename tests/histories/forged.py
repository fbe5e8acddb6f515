"""Histories written by hand: one operation after the other, each a second long, unless their times are given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from tests.histories.operations import NEVER, Answer, Held, Lost, Operation, Verb

LEASE = 10.0
OLD, NEW = 2048, 4096
"""Fences of the first and the second claim."""
ANN, BEN = "ann", "ben"
"""Workers."""
SUCCEEDED = ("succeeded", "succeeded", False, False)
REQUEUED = ("requeued", "pending", True, True)


@dataclass
class Forged:
    """A history of one run. Each method appends an operation, by default with the answer of an undisturbed run."""

    operations: list[Operation] = field(default_factory=list)
    clock: float = 0.0

    def add(self, verb: Verb, answer: Answer = True, **fields: Any) -> Self:
        """Append an operation after all others."""
        begun, self.clock = self.clock, self.clock + 1.0
        answered = NEVER if answer is Lost.LOST else self.clock - 0.5
        self.operations.append(Operation(verb, **{"invoked": begun, "answered": answered, **fields}, answer=answer))
        return self

    def wait(self, seconds: float = LEASE + 1) -> Self:
        """Let time pass."""
        self.clock += seconds
        return self

    def overlap(self) -> Self:
        """Let the last operation begin before the one before it."""
        *_, before, last = self.operations
        self.operations[-1] = replace(last, invoked=before.invoked - 0.1)
        return self

    def create(self) -> Self:
        return self.add(Verb.CREATE)

    def cancel(self, read: str = "running") -> Self:
        return self.add(Verb.READ, read).add(Verb.CANCEL)

    def claim(self, fence: int = OLD, answer: Answer = None) -> Self:
        return self.add(Verb.CLAIM, fence if answer is None else answer, fence=fence)

    def release(self, fence: int = OLD, answer: Answer = "released") -> Self:
        return self.add(Verb.RELEASE, answer, fence=fence)

    def begin(self, fence: int = OLD, worker: str = ANN, answer: Answer = ("begun", 1)) -> Self:
        return self.add(Verb.BEGIN, answer, fence=fence, worker=worker, lease=LEASE)

    def recover(self, fence: int = OLD, worker: str = ANN, answer: Answer = 1) -> Self:
        return self.add(Verb.RECOVER, answer, fence=fence, worker=worker, lease=LEASE)

    def beat(self, fence: int = OLD, worker: str = ANN, answer: Answer = True) -> Self:
        return self.add(Verb.HEARTBEAT, answer, fence=fence, worker=worker, lease=LEASE)

    def store(self, fence: int = OLD, worker: str = ANN, answer: Answer = True, progressed: bool = False) -> Self:
        return self.add(Verb.CHECKPOINT, answer, fence=fence, worker=worker, asked=(progressed,))

    def settle(
        self,
        fence: int = OLD,
        worker: str = ANN,
        answer: Answer = ("succeeded", True, True),
        asked: tuple[Answer, ...] = SUCCEEDED,
    ) -> Self:
        return self.add(Verb.SETTLE, answer, fence=fence, worker=worker, asked=asked)

    def reap(self, answer: Answer = (OLD, "requeued"), policy: str = "requeue", attempts: int = 3) -> Self:
        return self.add(Verb.REAP, answer, asked=(policy, attempts))

    def adopt(self) -> Self:
        return self.add(Verb.ADOPT)

    def return_slot(self) -> Self:
        return self.add(Verb.RETURN_SLOT)

    def left(self, status: str, *row: Answer) -> Self:
        """Append what is left of the run: status; row, fence, outcome, slot, attempts, refunded."""
        return self.add(Verb.FINAL, (status, row or None))


def begun() -> Forged:
    """Return the history of a run that a worker executes."""
    return Forged().create().claim().begin()


def reaped() -> Forged:
    """Return the history of a run whose first worker was lost, and that a second one executes."""
    return begun().wait().reap().claim(NEW).begin(NEW, BEN, ("begun", 2))


SETTLED_BY_ANN = ("settled", OLD, "succeeded", "due", 1, 0)
NOT_BEGUN = (Held.REFUSED,)
