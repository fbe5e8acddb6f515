"""The operations on one run, each with its time of invocation, its time of answer, and its answer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

NEVER = float("inf")


class Verb(StrEnum):
    """What a process, or the API, asks for."""

    CREATE = "create"
    READ = "the API reads"
    CANCEL = "the API cancels"
    CLAIM = "claim"
    RELEASE = "release"
    BEGIN = "begin"
    RECOVER = "recover what has begun"
    HEARTBEAT = "heartbeat"
    CHECKPOINT = "checkpoint"
    SETTLE = "settle"
    REFUSE = "refuse"
    REAP = "reap"
    RETRY = "retry"
    ADOPT = "adopt"
    RETURN_SLOT = "return the slot"
    SETTLED = "settled by somebody"
    """Seen in the database only: a process that records nothing settled the row."""
    FINAL = "final state"


class Lost(StrEnum):
    """Stands for an answer."""

    LOST = "lost"
    """The operation may have taken effect or not, at any time after its invocation."""


class Became(NamedTuple):
    """Stands for an answer that nobody recorded: the operation took effect, and the row came to this state."""

    row: str
    outcome: str | None = None


class Held(StrEnum):
    """Answers of statements that skip what another session has locked."""

    LOCKED = "locked"
    REFUSED = "refused"


type Answer = Hashable


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one run. Times are seconds of the machine's monotonic clock."""

    verb: Verb
    invoked: float
    answered: float = NEVER
    answer: Answer = Lost.LOST
    fence: int = 0
    worker: str | None = None
    lease: float = 0.0
    """That it gives, in seconds."""
    asked: tuple[Answer, ...] = ()
    """Further arguments: see the specification of each verb."""
    by: str = ""
    """The process."""

    @property
    def must_happen(self) -> bool:
        """Whether it has taken effect for certain, or was answered that it had none."""
        return self.answer is not Lost.LOST

    def __str__(self) -> str:
        asked = " ".join(str(each) for each in (self.fence or "", self.worker or "", *self.asked) if each != "")
        ended = f"{self.answered:.3f}" if self.answered != NEVER else "never"
        return f"{self.verb}({asked}) by {self.by or '?'} from {self.invoked:.3f} to {ended}: {_plain(self.answer)}"


def _plain(answer: Answer) -> str:
    if isinstance(answer, StrEnum):
        return answer.value
    if isinstance(answer, tuple) and not isinstance(answer, Became):
        return f"({', '.join(map(_plain, answer))})"
    return str(answer)
