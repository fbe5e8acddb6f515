"""A run as a worker receives it, and the ways in which it can end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from orcheo_dispatch.shared.ledger.model import Claim, Outcome

STALE = "stale"
"""The run is ours, and its claim is not the last one, or was answered before."""
UNKNOWN = "unknown"
"""The ledger has no row of the run."""
LOCKED = "locked"
"""A row of the run is locked: it may begin later."""


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a workflow, as begun: what an executor may know of it.

    `inputs` and `runnable_config` stay out of `repr`, so that no log line shows them.
    """

    run_id: str
    fence: int
    attempt: int
    workflow_id: str
    workflow_version_id: str
    workspace_id: str
    """The workspace that owns its workflow or, if the workflow has no owner, the one that it was created in."""
    triggered_by: str
    inputs: Mapping[str, Any] = field(repr=False)
    runnable_config: Mapping[str, Any] = field(repr=False)
    pending_for: float = 0.0
    """Seconds from its creation to this claim, by the clock of the database."""
    queued_for: float = 0.0
    """Seconds from its claim to its begin, by the same clock."""
    suspect: bool = False
    """Whether an earlier attempt was in a runner that ended."""
    fault: str | None = None
    """Why its inputs or its configuration cannot be read; such a run has begun, and must fail instead of executing."""

    @property
    def claim(self) -> Claim:
        """The claim under which it is executed."""
        return Claim(self.run_id, self.fence)


@dataclass(frozen=True, slots=True)
class NotBegun:
    """A message that must not execute: `stale` (another fence, or answered before), `locked`, or why it was skipped."""

    claim: Claim
    reason: str
    slot_due_in: str | None = None
    rejected: bool = False
    """Whether the run was cancelled because it may not be executed; `reason` says why."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run is to end: the status the API will read, and what goes with it."""

    outcome: Outcome
    status: str
    action: str
    reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    changes: str = field(default="{}", repr=False)
    """JSON text of what else changes in the payload: `output_payload`, `error`."""
    refund: bool = False
    """Whether the attempt does not count."""
    suspect: bool = False
    """Whether the next attempt runs alone in its runner."""

    @property
    def why(self) -> str:
        """What the run's audit log will say of its end."""
        return str(self.metadata.get("error") or self.metadata.get("reason") or "")

    @classmethod
    def succeeded(cls, output: str) -> Ending:
        """Return the ending of a run with this output, as JSON text."""
        changes = f'{{"error": null, "output_payload": {output}}}'
        return cls(Outcome.SUCCEEDED, "succeeded", "run_succeeded", changes=changes)

    @classmethod
    def failed(cls, error: str, *, reason: str, outcome: Outcome = Outcome.FAILED) -> Ending:
        """Return the ending of a run that failed with `error`; `reason` is what the ledger may say of it."""
        return cls(outcome, "failed", "run_failed", reason, {"error": error}, json.dumps({"error": error}))

    @classmethod
    def cancelled(cls, why: str) -> Ending:
        """Return the ending of a run that is cancelled."""
        changes = json.dumps({"error": why})
        return cls(Outcome.CANCELLED, "cancelled", "run_cancelled", "cancelled", {"reason": why}, changes)

    @classmethod
    def requeued(cls, why: str, *, suspect: bool = False, refund: bool = False) -> Ending:
        """Return the ending that hands a run back for another attempt; with `refund` this one does not count."""
        metadata = {"reason": why}
        return cls(Outcome.REQUEUED, "pending", "run_requeued", "requeued", metadata, refund=refund, suspect=suspect)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle changed. `ended` is False where the API had ended the run before."""

    outcome: Outcome
    ended: bool
    slot_due_in: str | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Result of one statement for many endings; a run in neither field is no longer this worker's."""

    settled: Mapping[Claim, Settled]
    locked: frozenset[Claim]
    """Still this worker's, with a locked row: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """A run whose worker was lost, and what became of it."""

    claim: Claim
    outcome: Outcome
    worker_id: UUID
    workflow_id: str
