"""States and outcomes of a dispatched run, and the values that identify a claim.

The tables themselves are in `shared/migrations`, every statement on them in `shared/statements`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SCHEMA = "orcheo_dispatch"
PENDING_INDEX = "orcheo_dispatch_pending_runs"
"""Pending runs, oldest first: for status, pages and views, and for claims where the other index is missing."""
TURNS_INDEX = "orcheo_dispatch_pending_turns"
"""Pending runs by workspace and workflow: for claims in turn."""
MAX_CLAIMS_PER_MESSAGE = 500
"""A message with more is not one of ours."""
ACTOR_WORKER = "worker"
"""The actor that Orcheo's own worker writes into a run's audit log, and so does ours."""
ACTOR_DISPATCHER = "dispatcher"


class State(StrEnum):
    """Where a dispatched run is: `claimed -> published -> running -> settled`, and again from any of them."""

    CLAIMED = "claimed"
    PUBLISHED = "published"
    RUNNING = "running"
    SETTLED = "settled"


class Outcome(StrEnum):
    """How a claim ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    SKIPPED = "skipped"
    """The run was no longer pending when it was to begin."""
    RELEASED = "released"
    """The claim was given back unharmed: the run never began."""
    REQUEUED = "requeued"
    """The run had begun, was given up, and is pending again."""


class ProcessKind(StrEnum):
    """What a process of ours does."""

    BEAT = "beat"
    DISPATCHER = "dispatcher"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """A run and the fencing token of the claim on it; all that crosses Redis.

    The fence rises with each claim of a run and guards every later write, so a holder of an older one
    changes nothing (M. Kleppmann, "How to do distributed locking", 2016: fencing tokens).
    """

    run_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found for a poll to do; by the time it is done it may be otherwise."""

    lost: bool
    """Leases of running runs have expired."""
    lapsed: bool
    """Claims have waited for a lease."""
    queued: int
    """Claims that have not begun."""
    pending: bool
    """Runs are pending, claimed or not."""
    in_turn: bool
    """There is an index that leads from turn to turn."""
    at: float | None
    """When it looked: seconds of the epoch, by the clock of the database; None where it could not look."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a push of the API."""

    known: bool
    """The run is in this installation's table."""
    admitted: bool = False
    """It is claimed from now on although the allow-list does not name its label."""
    refused: bool = False
    """It would have been, but the push names another workspace than the run's."""
