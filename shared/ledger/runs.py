"""A run as a worker receives it, and the ways in which it can end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from orcheo_dispatch.shared.ledger.model import Claim, Outcome
from orcheo_dispatch.shared.settings.policies import LostRuns, Retries, WorkerIsolation

STALE = "stale"
"""The run is ours, but its claim is not the latest one, or its message was answered before."""
UNKNOWN = "unknown"
"""The ledger has no row for the run."""
LOCKED = "locked"
"""Another session has locked a row of the run; the run may begin a moment later."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What operators decided for a run; None: nothing, and the settings of the worker apply."""

    timeout: float | None = None
    """Seconds."""
    lost_runs: LostRuns | None = None
    retries: Retries | None = None
    isolation: WorkerIsolation | None = None

    @classmethod
    def of(cls, policy: str | None) -> Rules:
        """Return the rules in JSON text as `orcheo_dispatch.policy_of` makes it.

        A word that this release does not know is no rule: a later release may have added it.
        """
        if policy is None:
            return NO_RULES
        found = json.loads(policy)
        return cls(
            found.get("timeout"),
            _word(LostRuns, found.get("lost_runs")),
            _word(Retries, found.get("retries")),
            _word(WorkerIsolation, found.get("isolation")),
        )


def _word[W: StrEnum](words: type[W], given: object) -> W | None:
    return next((word for word in words if word.value == given), None)


NO_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has begun, with everything that an executor may know about it.

    `inputs` and `runnable_config` are excluded from `repr`, so that no log line shows them.
    """

    run_id: str
    fence: int
    attempt: int
    """Number of this attempt, without those that do not count: see `Ending.refund`. A retry starts at 1 again."""
    workflow_id: str
    workflow_version_id: str
    workspace_id: str
    """The workspace that owns the workflow, or in which the run was created if the workflow has no owner."""
    triggered_by: str
    inputs: Mapping[str, Any] = field(repr=False)
    runnable_config: Mapping[str, Any] = field(repr=False)
    pending_for: float = 0.0
    """Seconds from the run's creation to this claim, by the clock of the database."""
    queued_for: float = 0.0
    """Seconds from this claim to the begin, by the clock of the database."""
    suspect: bool = False
    """Whether an earlier attempt was in a runner that ended."""
    first: bool = True
    """Whether the run begins for the first time."""
    rules: Rules = NO_RULES
    """What operators decided for it."""
    fault: str | None = None
    """Why the inputs or the configuration cannot be read. Such a run has begun, but must fail instead of executing."""

    @property
    def claim(self) -> Claim:
        """The claim under which the run is executed."""
        return Claim(self.run_id, self.fence)


@dataclass(frozen=True, slots=True)
class NotBegun:
    """A claim whose run must not be executed; `reason` is a word such as `stale` or `locked`, or why it was skipped."""

    claim: Claim
    reason: str
    slot_due_in: str | None = None
    rejected: bool = False
    """Whether the run was cancelled because it must not be executed; `reason` says why."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run is to end: the status that the API will read, and the details that go with it."""

    outcome: Outcome
    status: str
    action: str
    reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    changes: str = field(default="{}", repr=False)
    """Other changes of the payload, as JSON text: `output_payload`, `error`."""
    refund: bool = False
    """Whether this attempt is refunded: it does not count."""
    suspect: bool = False
    """Whether the next attempt must be alone in its runner."""

    retry: bool = False
    """Whether the run is tried again, later, if the retry policy of its workflow allows it."""
    checkpoint_id: str | None = None
    """The checkpoint at which it waits for an answer."""
    interrupts: int = 0
    """How many interrupts wait there."""
    keeps_slot: bool = False
    """Whether the run keeps its slot, because it has not ended."""

    @property
    def why(self) -> str:
        """The error or reason that the run's audit log will show."""
        return str(self.metadata.get("error") or self.metadata.get("reason") or "")

    @classmethod
    def succeeded(cls, output: str) -> Ending:
        """Return the ending of a run that succeeded; `output` is JSON text."""
        changes = f'{{"error": null, "output_payload": {output}}}'
        return cls(Outcome.SUCCEEDED, "succeeded", "run_succeeded", changes=changes)

    @classmethod
    def failed(cls, error: str, *, reason: str, outcome: Outcome = Outcome.FAILED, retry: bool = False) -> Ending:
        """Return the ending of a run that failed with `error`; `reason` is stored in the ledger."""
        changes = json.dumps({"error": error})
        return cls(outcome, "failed", "run_failed", reason, {"error": error}, changes, retry=retry)

    @classmethod
    def cancelled(cls, why: str) -> Ending:
        """Return the ending of a run that was cancelled."""
        changes = json.dumps({"error": why})
        return cls(Outcome.CANCELLED, "cancelled", "run_cancelled", "cancelled", {"reason": why}, changes)

    @classmethod
    def requeued(cls, why: str, *, suspect: bool = False, refund: bool = False) -> Ending:
        """Return the ending that makes a run pending again; with `refund`, this attempt does not count."""
        metadata = {"reason": why}
        return cls(
            Outcome.REQUEUED,
            "pending",
            "run_requeued",
            "requeued",
            metadata,
            refund=refund,
            suspect=suspect,
            keeps_slot=True,
        )

    @classmethod
    def waiting(cls, output: str, *, checkpoint_id: str, interrupts: int, keeps_slot: bool) -> Ending:
        """Return the ending of an attempt at which the run stopped at an interrupt; `output` is its state so far."""
        return cls(
            Outcome.REQUEUED,
            "running",
            "run_waiting",
            "waiting",
            {"reason": "Waits for an answer."},
            f'{{"error": null, "output_payload": {output}}}',
            checkpoint_id=checkpoint_id,
            interrupts=interrupts,
            keeps_slot=keeps_slot,
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle changed. `ended` is False if the API had already ended the run."""

    outcome: Outcome
    ended: bool
    slot_due_in: str | None
    retry_at: str | None = None
    """When the failed run is tried again, in ISO form."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Result of settling many runs. A claim that is in neither field no longer belongs to this worker."""

    settled: Mapping[Claim, Settled]
    locked: frozenset[Claim]
    """Claims that still belong to this worker but whose rows another session has locked: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """A run whose worker was lost, and its outcome."""

    claim: Claim
    outcome: Outcome
    worker_id: UUID
    workflow_id: str
