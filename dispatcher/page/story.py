"""Read what happened to one run, for the row of it that a reader has opened."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection

from orcheo_dispatch.dispatcher.page.figures import Row
from orcheo_dispatch.shared.ledger.operators.waits import read_waits
from orcheo_dispatch.shared.ledger.story import read_told

_EVENTS = 200
"""Maximum number of events, the newest: the audit log has no bound."""


def story_of(connection: Connection, run_id: str) -> Row:
    """Return a run's state and events, without any text of an error; an empty row if there is no such run.

    Raises what the driver raises.
    """
    told = read_told(connection, run_id)
    run = told.run
    if run.status is None and run.state is None:
        return {}
    wait = next(iter(read_waits(connection, [run_id])), None) if run.status == "pending" else None
    return {
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "status": run.status,
        "attempts": run.attempts,
        "retries": run.retries,
        "next_attempt_at": run.next_attempt_at,
        "next_attempt_in": run.retry_in,
        "interrupts": run.interrupts,
        "waiting_since": run.waiting_since,
        "waiting_for": run.waiting_for,
        "dead": run.dead,
        "held_back": wait.reason if wait is not None else None,
        "waits_because": wait.sentence if wait is not None else None,
        "audit_readable": told.audit_readable,
        "trace_readable": told.trace_readable,
        "events": [asdict(event) for event in told.events[-_EVENTS:]],
    }
