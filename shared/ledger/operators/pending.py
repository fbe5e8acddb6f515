"""Which workflows the pending runs are of, and what holds the late ones back: the figures that say what to act on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from orcheo_dispatch.shared.ledger.operators.waits import may_see_waits, read_waits
from orcheo_dispatch.shared.ledger.overview import names_of
from orcheo_dispatch.shared.ledger.statements.policy import LATE_REASONS, PENDING_WORKFLOWS

MOST_WORKFLOWS = 5
"""Number of workflows that are shown."""


@dataclass(frozen=True, slots=True)
class PendingWorkflow:
    """A workflow with pending runs. `oldest_age` is in seconds."""

    workflow_id: str
    workflow: str | None
    """Its name; None if it has none, or this role may not read it."""
    workspace_id: str | None
    pending: int
    oldest_age: float
    reason: str | None
    """Why its oldest run that is not claimed waits: as `Wait`. None: this role may not read it."""
    until: datetime | None
    by: str | None
    """Who decided what holds it back; None if nobody did."""
    why: str | None


@dataclass(frozen=True, slots=True)
class LateRuns:
    """Numbers of late runs by what holds them back; a run can be both held back and requeued."""

    paused: int = 0
    """By a pause or by maintenance."""
    limited: int = 0
    """By a limit or a rate of a policy."""
    requeued: int = 0
    """Runs whose age counts from their creation, long before they were requeued."""


def read_pending_workflows(connection: Connection) -> list[PendingWorkflow]:
    """Return the workflows with the most runs among the 25,000 oldest pending ones, the one with the most first."""
    rows = connection.execute(PENDING_WORKFLOWS, {"limit": MOST_WORKFLOWS}).all()
    if not rows:
        return []
    waits = {wait.workflow_id: wait for wait in read_waits(connection, [row.run_id for row in rows])}
    names = names_of(connection, [row.workflow_id for row in rows])
    found = []
    for row in rows:
        wait = waits.get(row.workflow_id)
        told = (wait.reason, wait.until, wait.by, wait.why) if wait is not None else (None, None, None, None)
        name = names.get(row.workflow_id)
        found.append(PendingWorkflow(row.workflow_id, name, row.workspace_id, row.pending, row.oldest_age, *told))
    return found


def read_late(connection: Connection) -> LateRuns:
    """Return what holds late runs back, among the 25,000 oldest; zeros if this role may not read it."""
    if not may_see_waits(connection):
        return LateRuns()
    row = connection.execute(LATE_REASONS).one()
    return LateRuns(row.paused, row.limited, row.requeued)
