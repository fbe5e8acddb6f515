"""States and outcomes of a dispatched run, and the values that identify a claim.

The tables are defined in `shared/schema/migrations`; the statements that change them are in `shared/ledger/statements`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

SCHEMA = "orcheo_dispatch"
PENDING_INDEX = "orcheo_dispatch_pending_runs"
"""Index on pending runs, oldest first: for status, pages and views, and for claims if `TURNS_INDEX` is missing."""
TURNS_INDEX = "orcheo_dispatch_pending_turns"
"""Index on pending runs by workspace and workflow: for claims in turn."""
MAX_CLAIMS_PER_MESSAGE = 500
"""Maximum number of claims in a message; a message with more is not one of ours."""
ACTOR_WORKER = "worker"
"""The actor in a run's audit log: both Orcheo's own worker and ours write it."""
ACTOR_DISPATCHER = "dispatcher"


class State(StrEnum):
    """State of a dispatched run: `claimed -> published -> running -> settled`; a settled run may be claimed again."""

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
    """The claim was given up before the run began; no attempt is counted."""
    REQUEUED = "requeued"
    """The run had begun, was abandoned, and is pending again."""


class ProcessKind(StrEnum):
    """Kind of one of our processes."""

    BEAT = "beat"
    DISPATCHER = "dispatcher"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """A run and the fencing token of the claim on it. Nothing else crosses Redis.

    The fence rises with each claim of a run and guards every later write, so a holder of an older fence
    cannot change anything (M. Kleppmann, "How to do distributed locking", 2016: fencing tokens).
    """

    run_id: str
    fence: int
    queue: str | None = field(default=None, compare=False)
    """The named queue that the message is published to, as a policy says; None: the default queue."""


@dataclass(frozen=True, slots=True)
class Lapsed:
    """A claim whose lease expired before its run began."""

    reason: str | None
    """The reason of its last extension."""
    served: bool
    """Whether a live worker consumes its queue, as far as is known; always true for the default queue."""


@dataclass(frozen=True, slots=True)
class Look:
    """Work that one look found for a poll. It may have changed by the time the poll does it."""

    lost: bool
    """Whether leases of running runs have expired."""
    lapsed: bool
    """Whether claims have lapsed: their leases expired before their runs began."""
    retries: bool
    """Whether failed runs are due to be tried again."""
    queued: int
    """Number of claims that have not begun, without those in named queues."""
    pending: bool
    """Whether runs are pending, claimed or not."""
    in_turn: bool
    """Whether the index for claims in turn exists and is valid."""
    at: float | None
    """Time of the look (seconds since the epoch, by the clock of the database); None if it failed."""
    limited: bool = True
    """Whether a policy limits how many runs are claimed."""
    rated: bool = True
    """Whether a policy limits how many runs are claimed per period."""
    named_queues: bool = True
    """Whether a policy names a queue."""
    maintenance: bool = False
    """Whether nothing is claimed because an operator said so."""


@dataclass(frozen=True, slots=True, order=True)
class Push:
    """A run that the API asked a worker to execute, and the workspace that the push names, if any."""

    run_id: str
    workspace_id: str | None


@dataclass(frozen=True, slots=True)
class Admission:
    """Result of a push by the API."""

    known: bool
    """Whether the run is in this installation's table."""
    admitted: bool = False
    """Whether the run may be claimed from now on although its label is not on the allow-list."""
    refused: bool = False
    """Whether the run was not admitted because the push names a workspace other than the run's."""
