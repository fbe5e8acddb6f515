"""Read what happened to one run, in order of time, from the API's table, the ledger, the audit log and the trace.

`orcheo-dispatch run` and the status page show it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from orcheo_dispatch.shared.ledger.model import ACTOR_DISPATCHER, ACTOR_WORKER
from orcheo_dispatch.shared.text.redaction import redact

ERROR_CHARACTERS = 20_000
"""Maximum length of an error that is shown. A worker of this project stores no more; the API and other workers may."""
_NAME_CHARACTERS = 200
_OURS = ("run_requeued", "run_retried", "run_waiting")
"""Actions whose reasons quote nothing of a run if our processes wrote them. An operator's may quote anything."""
_BY_HAND = "00000000-0000-0000-0000-000000000000"
"""The dispatcher of a row that an operator's command has made."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,79}|by hand")
"""Reasons in the ledger that are no text: the class of an error, or a word of ours."""

RUN = text("""
SELECT w.id AS run_id, COALESCE(r.workflow_id, d.workflow_id) AS workflow_id,
       COALESCE(r.workspace_id, d.workspace_id) AS workspace_id,
       COALESCE(r.triggered_by, d.triggered_by) AS triggered_by, r.status, r.created_at, r.updated_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age,
       d.state, d.outcome, d.reason, d.fence, d.attempts, d.slot, d.claimed_at, d.published_at, d.begun_at,
       d.heartbeat_at, d.lease_expires_at, d.settled_at,
       EXTRACT(epoch FROM d.lease_expires_at - now())::float8 AS lease_left,
       d.dispatcher_id::text AS dispatcher_id, d.worker_id::text AS worker_id,
       p.ours, p.late, COALESCE(l.stuck, false) AS stuck,
       COALESCE(t.retries, 0) AS retries, CASE WHEN r.status = 'failed' THEN t.next_at END AS next_attempt_at,
       CASE WHEN r.status = 'failed' THEN EXTRACT(epoch FROM t.next_at - now())::float8 END AS retry_in,
       CASE WHEN r.status = 'running' THEN q.interrupts END AS interrupts,
       CASE WHEN r.status = 'running' THEN q.asked_at END AS waiting_since,
       CASE WHEN r.status = 'running' THEN EXTRACT(epoch FROM now() - q.asked_at)::float8 END AS waiting_for,
       -- As in the view dead_runs, which cannot be searched for one run.
       COALESCE(r.status = 'failed' AND d.outcome IN ('failed', 'timed_out', 'lost') AND t.next_at IS NULL, false)
           AS dead,
       COALESCE((SELECT k.alive FROM orcheo_dispatch.processes AS k WHERE k.id = d.worker_id), false) AS worker_alive
  FROM (SELECT CAST(:run_id AS text) AS id) AS w
  LEFT JOIN workflow_runs AS r ON r.id = w.id
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = w.id
  LEFT JOIN orcheo_dispatch.all_pending_runs AS p ON p.run_id = w.id
  LEFT JOIN orcheo_dispatch.live_runs AS l ON l.run_id = w.id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = w.id
  LEFT JOIN orcheo_dispatch.question AS q ON q.run_id = w.id
""")

# Orcheo creates the table with its first trace; a role may be allowed to read its other columns only.
# Null where there is no such table.
MAY_READ_TRACE = text("SELECT has_column_privilege(to_regclass('execution_history_steps'), 'payload', 'SELECT')")
RESUMED = text("""
SELECT s.at, s.payload -> 'resumed' AS resumed FROM execution_history_steps AS s
 WHERE s.execution_id = :run_id AND s.payload -> 'resumed' ? 'after_step'
 ORDER BY s.step_index
""")

PROCESS = text("""
SELECT id::text AS id, kind, host, pid, version, EXTRACT(epoch FROM now() - seen_at)::float8 AS seen_ago
  FROM orcheo_dispatch.process WHERE id = CAST(:id AS uuid)
""")

# The role of a dashboard must not read the payload, in which the inputs are too.
MAY_READ_PAYLOAD = text("SELECT has_column_privilege('workflow_runs', 'payload', 'SELECT')")
PAYLOAD = text("""
SELECT CASE WHEN :with_error THEN payload ->> 'error' END AS error,
       COALESCE(NULLIF(payload -> 'audit_log', 'null'), '[]') AS audit
  FROM workflow_runs WHERE id = :run_id
""")


@dataclass(frozen=True, slots=True)
class Who:
    """A process that had to do with the run. All but `id` is None where it is gone: ended in order, or a day ago."""

    id: str
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    seen_ago: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the run; `after` is the seconds since the event before it."""

    at: datetime
    what: str
    by: str
    detail: str | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Told:
    """What happened to a run. `run` has the columns of `RUN`: all are None but `run_id` if there is no such run."""

    run: Row[Any]
    dispatcher: Who | None
    worker: Who | None
    audit_readable: bool
    """Whether the database let us read the run's payload, where its audit log and its error are."""
    trace_readable: bool
    """Whether it let us read the run's trace, which says where the run was resumed."""
    error: str | None
    """The run's error, redacted, where it was asked for."""
    events: list[Event]


def read_told(connection: Connection, run_id: str, *, errors: bool = False) -> Told:
    """Return what happened to the run with this id.

    The texts of errors and of reasons in the audit log may quote a run's inputs: they are left out unless `errors`.
    """
    run = connection.execute(RUN, {"run_id": run_id}).one()
    dispatcher, worker = _who(connection, run.dispatcher_id), _who(connection, run.worker_id)
    readable = bool(connection.scalar(MAY_READ_PAYLOAD))
    payload = connection.execute(PAYLOAD, {"run_id": run_id, "with_error": errors}).one_or_none() if readable else None
    traced = bool(connection.scalar(MAY_READ_TRACE))
    resumed = connection.execute(RESUMED, {"run_id": run_id}).all() if traced else ()
    audit = payload.audit if payload is not None and isinstance(payload.audit, list) else []
    error = payload.error if payload is not None else None
    return Told(
        run=run,
        dispatcher=dispatcher,
        worker=worker,
        audit_readable=readable,
        trace_readable=traced,
        error=redact(error, ERROR_CHARACTERS) if error else None,
        events=_with_gaps(
            [
                *_of_tables(run, dispatcher, worker, errors=errors),
                *_of_audit(audit, run, errors=errors),
                *_of_trace(resumed),
            ]
        ),
    )


def _who(connection: Connection, process_id: str | None) -> Who | None:
    if process_id is None or process_id == _BY_HAND:
        return None
    row = connection.execute(PROCESS, {"id": process_id}).one_or_none()
    return Who(process_id) if row is None else Who(row.id, row.host, row.pid, row.version, row.seen_ago)


def _named(kind: str, who: Who | None) -> str:
    if who is None:
        return "operator"
    return f"{kind} {who.host} pid {who.pid}" if who.host is not None else f"{kind} {who.id[:8]} (gone)"


def _of_tables(run: Row[Any], dispatcher: Who | None, worker: Who | None, *, errors: bool) -> list[Event]:
    """Return what the API's row and the ledger say. The ledger holds the last claim alone."""
    by_dispatcher, by_worker = _named("dispatcher", dispatcher), _named("worker", worker)
    # Rows that an operator's command made, or that only note a run slot.
    never_claimed = run.dispatcher_id == _BY_HAND or (run.settled_at is not None and run.claimed_at == run.settled_at)
    # The ledger does not say who settled it; the reason does.
    settled_by = by_worker if run.worker_id is not None else "dispatcher"
    settled_by = {"by hand": "operator", "worker_lost": "dispatcher"}.get(run.reason, settled_by)
    reason = run.reason if errors or _NAME.fullmatch(run.reason or "") else None
    retry = None if run.next_attempt_at is None else _retry(run.retries, run.next_attempt_at)
    found = [
        (run.created_at, "created", run.triggered_by, None),
        (None if never_claimed else run.claimed_at, "claimed", by_dispatcher, f"fence {run.fence}"),
        (run.published_at, "published", by_dispatcher, None),
        (run.begun_at, "begun", by_worker, f"attempt {run.attempts}"),
        (None if run.heartbeat_at == run.begun_at else run.heartbeat_at, "last heartbeat", by_worker, None),
        (run.settled_at, "settled", settled_by, _joined(run.outcome, reason, retry)),
    ]
    return [Event(at, what, by, detail, None) for at, what, by, detail in found if at is not None]


def _joined(*texts: str | None) -> str:
    return ": ".join(each for each in texts if each)


def _of_audit(audit: list[Any], run: Row[Any], *, errors: bool) -> list[Event]:
    """Return what the audit log has beyond the tables: earlier attempts, and what the API and operators did."""
    known = {("run_started", run.begun_at), (f"run_{run.status}", run.settled_at)}
    found = []
    for record in audit:
        event = _audited(record, errors=errors)
        if event is not None and event.what != "run_created" and (event.what, event.at) not in known:
            found.append(event)
    return found


def _of_trace(resumed: Sequence[Row[Any]]) -> list[Event]:
    """Return where the run was continued, as its trace says."""
    found = []
    for row in resumed:
        told = row.resumed
        tasks = ", ".join(str(task) for task in told.get("tasks") or ())
        detail = f"after step {told['after_step']}, attempt {told.get('attempt')}: executes {tasks or '?'}"
        found.append(Event(row.at, "resumed", "worker", redact(detail, ERROR_CHARACTERS), None))
    return found


def _audited(record: Any, *, errors: bool) -> Event | None:
    try:
        at = datetime.fromisoformat(record["at"])
        what, by, metadata = str(record["action"]), str(record["actor"]), record.get("metadata") or {}
        said = metadata.get("error") or metadata.get("reason")
        retry_at = metadata.get("retry_at")
        retry = None if retry_at is None else _retry(int(metadata["retry"]), datetime.fromisoformat(retry_at))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    if at.tzinfo is None:
        return None
    ours = what in _OURS and by in (ACTOR_DISPATCHER, ACTOR_WORKER)
    shown = redact(str(said), ERROR_CHARACTERS) if said and (errors or ours) else None
    return Event(at, what[:_NAME_CHARACTERS], by[:_NAME_CHARACTERS], _joined(shown, retry) or None, None)


def _retry(number: int, at: datetime) -> str:
    """Return that the run is tried again, and when."""
    return f"retry {number} at {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _with_gaps(events: list[Event]) -> list[Event]:
    ordered = sorted(events, key=lambda event: event.at)
    before = [None, *ordered][: len(ordered)]
    return [
        Event(event.at, event.what, event.by, event.detail, (event.at - last.at).total_seconds() if last else None)
        for last, event in zip(before, ordered, strict=True)
    ]
