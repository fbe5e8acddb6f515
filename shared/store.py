"""The ledger, as Python calls: one short transaction each, rows in, small frozen values out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from shared import statements
from shared.database import transaction
from shared.errors import DatabaseError
from shared.ledger import ACTOR_DISPATCHER, ACTOR_WORKER, TURNS_INDEX, Claim, Look, Outcome, State
from shared.logs import log
from shared.settings import LostRuns
from shared.turns import NO_LIMITS, Limits, Turns

STALE = "stale"
"""Why a message of an earlier claim, or one that was answered before, is not begun."""


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
    workspace_id: str | None
    triggered_by: str
    inputs: Mapping[str, Any] = field(repr=False)
    runnable_config: Mapping[str, Any] = field(repr=False)
    pending_for: float = 0.0
    """Seconds from its creation to this claim, by the clock of the database."""
    queued_for: float = 0.0
    """Seconds from its claim to its begin, by the same clock."""

    @property
    def claim(self) -> Claim:
        """The claim under which it is executed."""
        return Claim(self.run_id, self.fence)


@dataclass(frozen=True, slots=True)
class NotBegun:
    """A message that must not execute: `stale` (another fence, or answered before) or why the run was skipped."""

    claim: Claim
    reason: str
    slot_due_in: str | None = None


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
    def requeued(cls, why: str) -> Ending:
        """Return the ending that hands a run back for another attempt."""
        return cls(Outcome.REQUEUED, "pending", "run_requeued", "requeued", {"reason": why})


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settle changed. `ended` is False where the API had ended the run before."""

    outcome: Outcome
    ended: bool
    slot_due_in: str | None


@dataclass(frozen=True, slots=True)
class Reaped:
    """A run whose worker was lost, and what became of it."""

    claim: Claim
    outcome: Outcome
    worker_id: UUID
    workflow_id: str


class Store:
    """Every change of a run's status, and every row of the ledger, goes through here.

    Each method is one transaction, but for claims of one statement, and raises `DatabaseError` where Postgres is away.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def claim(
        self,
        room: int,
        *,
        triggers: Sequence[str],
        every_trigger: bool,
        lease: float,
        dispatcher_id: UUID,
        turns: Turns | None = None,
        limits: Limits = NO_LIMITS,
        in_turn: bool = True,
    ) -> list[Claim]:
        """Claim up to `room` pending runs for `lease` seconds; no two callers get the same.

        In turn by workspace and workflow, from where `turns` is; without `in_turn` the oldest first, whosever they are.
        With `limits` one caller claims at a time, so that they hold exactly, if all dispatchers have the same.
        """
        allowed = {"triggers": list(triggers), "every_trigger": every_trigger}
        terms = {**allowed, "lease": lease, "dispatcher_id": str(dispatcher_id)}
        with transaction(self._engine) as connection:
            return (turns or Turns()).claim(connection, room, terms, limits, in_turn=in_turn)

    def look(self, *, triggers: Sequence[str], every_trigger: bool) -> Look:
        """Return what there is for a poll to do."""
        (row,) = self._rows(statements.LOOK, triggers=list(triggers), every_trigger=every_trigger, index=TURNS_INDEX)
        return Look(row.lost, row.lapsed, row.queued, row.pending, row.in_turn)

    def queued(self) -> int:
        """Return how many claims have not begun yet."""
        return int(self._rows(statements.QUEUED)[0][0])

    def mark_published(self, claims: Iterable[Claim], *, lease: float) -> None:
        """Note that the messages of these claims are in Redis."""
        self._rows(statements.MARK_PUBLISHED, lease=lease, **_arrays(claims))

    def release(self, claims: Iterable[Claim], *, reason: str) -> int:
        """Give claims back that never began; return how many of them were still ours."""
        return len(self._rows(statements.RELEASE, reason=reason, **_arrays(claims)))

    def begin(self, claim: Claim, *, worker_id: UUID, lease: float) -> Run | NotBegun:
        """Begin the run of this claim, once; every later call with the same fence is told `stale`."""
        rows = self._rows(
            statements.BEGIN,
            run_id=claim.run_id,
            fence=claim.fence,
            lease=lease,
            worker_id=str(worker_id),
            actor=ACTOR_WORKER,
        )
        if not rows:
            return NotBegun(claim, STALE)
        row = rows[0]
        if row.state != State.RUNNING:
            return NotBegun(claim, row.reason, row.workspace_id if row.slot == "due" else None)
        return Run(
            run_id=claim.run_id,
            fence=claim.fence,
            attempt=row.attempts,
            workflow_id=row.workflow_id,
            workflow_version_id=row.workflow_version_id,
            workspace_id=row.workspace_id,
            triggered_by=row.triggered_by,
            inputs=row.inputs or {},
            runnable_config=row.runnable_config or {},
            pending_for=row.pending_for,
            queued_for=row.queued_for,
        )

    def settle(self, claim: Claim, ending: Ending, *, actor: str = ACTOR_WORKER) -> Settled | None:
        """End the run under its fence; return None where the fence has moved and nothing was changed.

        Raises `sqlalchemy.exc.DBAPIError` where Postgres cannot store the ending.
        """
        rows = self._rows(
            statements.SETTLE,
            run_id=claim.run_id,
            fence=claim.fence,
            outcome=ending.outcome,
            status=ending.status,
            action=ending.action,
            reason=ending.reason,
            actor=actor,
            metadata=json.dumps(dict(ending.metadata)),
            changes=ending.changes,
        )
        if not rows:
            return None
        row = rows[0]
        return Settled(Outcome(row.outcome), bool(row.ended), row.workspace_id if row.slot == "due" else None)

    def heartbeat(self, claims: Iterable[Claim], *, lease: float) -> dict[Claim, str | None]:
        """Extend the leases of running claims; return those still held, with the run's status in the API."""
        rows = self._rows(statements.HEARTBEAT, lease=lease, **_arrays(claims))
        return {Claim(row.run_id, row.fence): row.status for row in rows}

    def reap(self, policy: LostRuns, *, max_attempts: int, lease: float, batch: int) -> list[Reaped]:
        """End or requeue runs whose worker missed its lease; none for `lease` seconds after a start of Postgres."""
        rows = self._rows(
            statements.REAP,
            policy=policy.value,
            max_attempts=max_attempts,
            lease=lease,
            batch=batch,
            actor=ACTOR_DISPATCHER,
        )
        return [Reaped(Claim(r.run_id, r.fence), Outcome(r.outcome), r.worker_id, r.workflow_id) for r in rows]

    def reap_orphans(self) -> int:
        """Settle the rows of runs that are gone from the API's table; return how many."""
        return len(self._rows(statements.REAP_ORPHANS))

    def close_traces(self, run_ids: Iterable[str]) -> int:
        """Close the traces of these runs as far as they are open and the runs have ended; return how many.

        Never raises: a trace is not worth a poll or a run. Orcheo makes the tables when it first writes a trace.
        """
        try:
            return len(self._rows(statements.CLOSE_TRACES, run_ids=list(run_ids)))
        except DatabaseError as error:
            log.warning("traces_not_closed", reason=str(error))
            return 0

    def lapsed(self, *, batch: int) -> dict[Claim, str | None]:
        """Return claims that nobody answered for a lease, with the reason of their last extension."""
        return {Claim(row.run_id, row.fence): row.reason for row in self._rows(statements.LAPSED, batch=batch)}

    def extend(self, claims: Iterable[Claim], *, lease: float, reason: str) -> None:
        """Give these claims another lease."""
        self._rows(statements.EXTEND, lease=lease, reason=reason, **_arrays(claims))

    def adopt_cancelled(
        self, *, triggers: Sequence[str], every_trigger: bool, younger_than: float, dispatcher_id: UUID, batch: int
    ) -> int:
        """Enter runs that were cancelled before any claim, so that their slots are given back; return how many."""
        rows = self._rows(
            statements.ADOPT_CANCELLED,
            triggers=list(triggers),
            every_trigger=every_trigger,
            younger_than=younger_than,
            dispatcher_id=str(dispatcher_id),
            batch=batch,
        )
        return len(rows)

    def slots_due(self, *, older_than: float, batch: int) -> list[tuple[str, str]]:
        """Return `(run_id, workspace_id)` of the slots that have been due for `older_than` seconds."""
        rows = self._rows(statements.SLOTS_DUE, older_than=older_than, batch=batch)
        return [(row.run_id, row.workspace_id) for row in rows]

    def slots_returned(self, run_ids: Iterable[str]) -> None:
        """Note that these runs' slots were given back."""
        self._rows(statements.SLOTS_RETURNED, run_ids=list(run_ids))

    def prune(self, *, retention: float, batch: int) -> int:
        """Delete rows settled more than `retention` seconds ago; return how many."""
        return len(self._rows(statements.PRUNE, retention=retention, batch=batch))

    def count_ended(self) -> None:
        """Count what ended up to two minutes ago, six hours of it at most, and forget what ended a month ago."""
        self._rows(statements.COUNT_ENDED)
        self._rows(statements.PRUNE_ENDED)

    def _rows(self, statement: Any, **parameters: Any) -> Sequence[Any]:
        with transaction(self._engine) as connection:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()


def _arrays(claims: Iterable[Claim]) -> dict[str, list[Any]]:
    ordered = sorted(claims)
    return {"run_ids": [claim.run_id for claim in ordered], "fences": [claim.fence for claim in ordered]}
