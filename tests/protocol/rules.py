"""What is compared after every step: the database with the model, and each run with what it was before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from orcheo.models import WorkflowRun

from orcheo_dispatch.shared.ledger.operators.repairs import ACTOR_OPERATOR
from tests.protocol.fences import Fences
from tests.protocol.model import ENDED, Known, Model

_SEE = """
SELECT COALESCE(r.id, d.run_id), r.status, r.updated_at, r.payload, to_jsonb(d), d.lease_expires_at < now()
  FROM workflow_runs AS r FULL JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
"""
_STATUS_AFTER = {
    "run_created": "pending",
    "run_started": "running",
    "run_requeued": "pending",
    "run_succeeded": "succeeded",
    "run_failed": "failed",
    "run_cancelled": "cancelled",
}
_SLOTS = ["none", "held", "due", "returned"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A run and its row as they are: `status` is None where the run is deleted, `row` where it has none."""

    status: str | None = None
    updated_at: datetime | None = None
    payload: dict[str, Any] | None = None
    row: dict[str, Any] | None = None
    lapsed: bool | None = None

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The run's audit log."""
        return list(self.payload["audit_log"]) if self.payload else []


NOTHING = Seen()


def see(connection: psycopg.Connection[Any]) -> dict[str, Seen]:
    """Return all runs and rows."""
    return {run_id: Seen(*rest) for run_id, *rest in connection.execute(_SEE)}


def differences(model: Model, seen: dict[str, Seen], fences: Fences) -> list[str]:
    """Return where the database is not as the model says."""
    different = [f"{run_id} is unknown" for run_id in seen if run_id not in model.runs]
    for run in model.runs.values():
        there = _told(run, seen.get(run.run_id, NOTHING), fences)
        expected = {name: getattr(run, name) for name in there} | ({} if run.status else {"audit": []})
        different += [
            f"{run.run_id}: {name} is {there[name]}, not {expected[name]}"
            for name in there
            if there[name] != expected[name]
        ]
    return different


def check(run: Known, before: Seen, after: Seen) -> None:
    """Fail where a run, or its row, went from `before` to `after` against a rule that holds whatever the model says."""
    if after.payload and after != before:
        _check_audit_log(before, after)
    if after.row:
        state, status = after.row["state"], after.status
        assert (state == "settled") == (after.row["lease_expires_at"] is None)
        assert state != "running" or status != "pending"
        assert status != "running" or state == "running"
        assert after.row["outcome"] != "succeeded" or status in ("succeeded", None)
        if after.payload and not run.forgotten:
            assert after.row["attempts"] == _begins(after), "an attempt is a begin"
    if before.row and after.row:
        claimed = after.row["claimed_at"] != before.row["claimed_at"]
        assert (after.row["fence"] > before.row["fence"]) == claimed, "a claim raises the fence"
        assert claimed or after.row["fence"] == before.row["fence"], "nothing else changes the fence"
        assert _SLOTS.index(after.row["slot"]) >= _SLOTS.index(before.row["slot"]), "a slot is given back once"


def _told(run: Known, seen: Seen, fences: Fences) -> dict[str, Any]:
    row = seen.row or {}
    return {
        "status": seen.status,
        "audit": [record["action"] for record in seen.audit],
        "lapsed": seen.lapsed,
        "fence": fences.number(run.run_id, row["fence"], without_claim=run.fence) if row else run.fence,
        "attempts": row.get("attempts", 0),
        "refunded": row.get("refunded", 0),
        "suspect": row.get("suspect", False),
        **{name: row.get(name) for name in ("state", "outcome", "slot")},
    }


def _check_audit_log(before: Seen, after: Seen) -> None:
    run = WorkflowRun.model_validate(after.payload)
    assert (run.status.value, run.updated_at) == (after.status, after.updated_at), "column and payload agree"
    assert after.audit[: len(before.audit)] == before.audit, "the audit log only grows"
    told = [_STATUS_AFTER[record["action"]] for record in after.audit]
    assert told[-1] == after.status, "each change has its record"
    for earlier, later, record in zip(told, told[1:], after.audit[1:], strict=False):
        assert earlier != later, "each record is of a change"
        if earlier in ENDED:
            assert (later, record["actor"]) == ("pending", ACTOR_OPERATOR), "an end stands, but for an operator"


def _begins(seen: Seen) -> int:
    """Return how often a run has begun since an operator last requeued it."""
    begun = 0
    for record in seen.audit:
        requeued = record["action"] == "run_requeued" and record["actor"] == ACTOR_OPERATOR
        begun = 0 if requeued else begun + (record["action"] == "run_started")
    return begun
