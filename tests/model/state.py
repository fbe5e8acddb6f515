"""One state of the model: the run and its row, the messages in Redis, and what each process knows."""

from __future__ import annotations

from typing import NamedTuple

STEPS = 2
"""Steps of the run."""
WORKERS = 2
ENDED = ("succeeded", "failed", "cancelled")
QUEUED = ("claimed", "published")
LIVE = (*QUEUED, "running")


class Holder(NamedTuple):
    """What a worker knows: the fence of its message, and how far it is."""

    fence: int
    begun: bool = False
    done: int = 0
    saved: int = 0
    expired: bool = False
    """Whether its lease has expired once: from then on another worker may execute the run too."""


class Row(NamedTuple):
    """What Postgres holds of the run. A dump has all of it."""

    status: str = "pending"
    state: str | None = None
    fence: int = 0
    worker: int | None = None
    lapsed: bool = False
    stored: int = 0
    """Steps whose checkpoint is stored."""
    slot: str = "held"
    returned: int = 0
    """How often the API's counter was decremented for this run."""
    begun: tuple[int, ...] = ()
    """Fences under which it began. For the checks only; no statement reads it."""


class State(NamedTuple):
    """The whole state. Dispatchers are represented by the claims that they work on, so their number is not bounded."""

    row: Row = Row()
    high: int = 0
    """The clock: the highest fence that was ever given."""
    queue: tuple[int, ...] = ()
    """Messages in Redis, by fence."""
    unpublished: tuple[int, ...] = ()
    unmarked: tuple[int, ...] = ()
    judged: tuple[int, ...] = ()
    """Claims that a dispatcher is about to release, because it found no message."""
    holders: tuple[Holder | None, ...] = (None,) * WORKERS
    faults: int = 0
    """How many more faults may happen."""
    dump: Row | None = None


class Move(NamedTuple):
    """A step of one process, or a fault, and the property that it breaks, if any."""

    name: str
    state: State
    broken: str | None = None
