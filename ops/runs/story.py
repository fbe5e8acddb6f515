"""Tell one run's story in order of time, from the API's table, the ledger and the run's audit log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from orcheo_dispatch.ops.runs.hints import Fleet, hints_for
from orcheo_dispatch.ops.runs.list import only_one
from orcheo_dispatch.ops.runs.repair import ACTOR_OPERATOR
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.redaction import redact

_ERROR_CHARACTERS = 20_000
"""As many as a worker of ours stores; the API and other workers set no bound."""
_OURS = ("run_requeued", "run_retried", "run_waiting", "run_answered")
"""Actions whose reasons our processes write: they quote nothing of a run. An operator writes a reason of their own."""
_BY_HAND = "00000000-0000-0000-0000-000000000000"
"""The dispatcher of a row that an operator's command has made."""

# A run may be gone from the API's table while its row is still in the ledger.
_IDS = text("""
SELECT id FROM workflow_runs WHERE id = :given
 UNION SELECT run_id FROM orcheo_dispatch.dispatch WHERE run_id = :given
""")
_IDS_THAT_BEGIN = text("""
SELECT id FROM workflow_runs WHERE starts_with(id, :given)
 UNION SELECT run_id FROM orcheo_dispatch.dispatch WHERE starts_with(run_id, :given)
 ORDER BY id LIMIT 4
""")

_RUN = text("""
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
       EXTRACT(epoch FROM t.next_at - now())::float8 AS retry_in,
       CASE WHEN r.status = 'running' THEN q.interrupts END AS interrupts,
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
_MAY_READ_TRACE = text("""
SELECT CASE WHEN to_regclass('execution_history_steps') IS NULL THEN false
            ELSE has_column_privilege(to_regclass('execution_history_steps'), 'payload', 'SELECT') END
""")
_RESUMED = text("""
SELECT s.at, s.payload -> 'resumed' AS resumed FROM execution_history_steps AS s
 WHERE s.execution_id = :run_id AND s.payload -> 'resumed' ? 'after_step'
 ORDER BY s.step_index
""")

_PROCESS = text("""
SELECT id::text AS id, kind, host, pid, version, EXTRACT(epoch FROM now() - seen_at)::float8 AS seen_ago
  FROM orcheo_dispatch.process WHERE id = CAST(:id AS uuid)
""")

# The role of a dashboard must not read the payload, in which the inputs are too.
_MAY_READ_PAYLOAD = text("SELECT has_column_privilege('workflow_runs', 'payload', 'SELECT')")
_PAYLOAD = text("""
SELECT payload ->> 'error' AS error, COALESCE(NULLIF(payload -> 'audit_log', 'null'), '[]') AS audit
  FROM workflow_runs WHERE id = :run_id
""")

_FLEET = text("""
SELECT count(*) FILTER (WHERE kind = 'dispatcher') AS dispatchers,
       count(*) FILTER (WHERE kind = 'worker') AS workers,
       COALESCE(sum(concurrency) FILTER (WHERE kind = 'worker'), 0)::int AS places,
       COALESCE(sum(running) FILTER (WHERE kind = 'worker'), 0)::int AS taken,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE state IN ('claimed', 'published')) AS queued,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE workflow_id = :workflow) AS of_workflow,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE workspace_id = :workspace) AS of_workspace
  FROM orcheo_dispatch.processes WHERE alive
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
class Story:
    """A run's whole story. Ages and `lease_left` are seconds; `status` is None where the API has deleted the run."""

    run_id: str
    workflow_id: str
    triggered_by: str
    status: str | None
    created_at: datetime | None
    age: float | None
    state: str | None
    outcome: str | None
    reason: str | None
    fence: int | None
    attempts: int | None
    slot: str | None
    lease_left: float | None
    retries: int
    """How often it was or will be tried again by the retry policy of its workflow."""
    next_attempt_at: datetime | None
    """When it is tried again."""
    interrupts: int | None
    """How many interrupts wait for an answer."""
    dispatcher: Who | None
    worker: Who | None
    audit_readable: bool
    """Whether the database let us read the run's payload, where its audit log and its error are."""
    error: str | None
    """The run's error, redacted, where it was asked for."""
    events: list[Event]
    hints: list[str]
    """What to know, or to do, where the run is stuck or late."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def read_story(engine: Engine, given: str, settings: Settings, *, errors: bool = False) -> Story:
    """Return the story of the run with the id `given`, or with the only id that begins so.

    The texts of errors and of reasons in the audit log may quote a run's inputs: they are left out unless `errors`.
    Raises `DispatchError` where there is no such run, `SettingsError` where there are several.
    """
    with transaction(engine) as connection:
        run_id = _run_id(connection, given)
        run = connection.execute(_RUN, {"run_id": run_id}).one()
        dispatcher = _who(connection, run.dispatcher_id)
        worker = _who(connection, run.worker_id)
        readable = bool(connection.scalar(_MAY_READ_PAYLOAD))
        payload = connection.execute(_PAYLOAD, {"run_id": run_id}).one_or_none() if readable else None
        resumed = connection.execute(_RESUMED, {"run_id": run_id}).all() if connection.scalar(_MAY_READ_TRACE) else ()
        about = {"workflow": run.workflow_id, "workspace": run.workspace_id}
        fleet = Fleet(**connection.execute(_FLEET, about).one()._mapping)  # noqa: SLF001 - public in SQLAlchemy
    audit = payload.audit if payload is not None and isinstance(payload.audit, list) else []
    error = payload.error if payload is not None and errors else None
    return Story(
        run_id=run.run_id,
        workflow_id=run.workflow_id,
        triggered_by=run.triggered_by,
        status=run.status,
        created_at=run.created_at,
        age=run.age,
        state=run.state,
        outcome=run.outcome,
        reason=run.reason,
        fence=run.fence,
        attempts=run.attempts,
        slot=run.slot,
        lease_left=run.lease_left,
        retries=run.retries,
        next_attempt_at=run.next_attempt_at,
        interrupts=run.interrupts,
        dispatcher=dispatcher,
        worker=worker,
        audit_readable=readable,
        error=redact(error, _ERROR_CHARACTERS) if error else None,
        events=_with_gaps(
            [*_of_tables(run, dispatcher, worker), *_of_audit(audit, run, errors=errors), *_of_trace(resumed)]
        ),
        hints=hints_for(run, worker.seen_ago if worker is not None else None, fleet, settings),
    )


def _run_id(connection: Connection, given: str) -> str:
    found = connection.execute(_IDS, {"given": given}).scalars().all()
    if not found and given:
        found = connection.execute(_IDS_THAT_BEGIN, {"given": given}).scalars().all()
    if not found:
        raise DispatchError(f"there is no run {given!r}")
    return only_one("run", given, found, "")


def _who(connection: Connection, process_id: str | None) -> Who | None:
    if process_id is None or process_id == _BY_HAND:
        return None
    row = connection.execute(_PROCESS, {"id": process_id}).one_or_none()
    return Who(process_id) if row is None else Who(row.id, row.host, row.pid, row.version, row.seen_ago)


def _named(kind: str, who: Who | None) -> str:
    if who is None:
        return "operator"
    return f"{kind} {who.host} pid {who.pid}" if who.host is not None else f"{kind} {who.id[:8]} (gone)"


def _of_tables(run: Row[Any], dispatcher: Who | None, worker: Who | None) -> list[Event]:
    """Return what the API's row and the ledger say. The ledger holds the last claim alone."""
    by_dispatcher, by_worker = _named("dispatcher", dispatcher), _named("worker", worker)
    # Rows that an operator's command made, or that only note a run slot.
    never_claimed = run.dispatcher_id == _BY_HAND or (run.settled_at is not None and run.claimed_at == run.settled_at)
    # The ledger does not say who settled it; the reason does.
    settled_by = by_worker if run.worker_id is not None else "dispatcher"
    settled_by = {"by hand": "operator", "worker_lost": "dispatcher"}.get(run.reason, settled_by)
    found = [
        (run.created_at, "created", run.triggered_by, None),
        (None if never_claimed else run.claimed_at, "claimed", by_dispatcher, f"fence {run.fence}"),
        (run.published_at, "published", by_dispatcher, None),
        (run.begun_at, "begun", by_worker, f"attempt {run.attempts}"),
        (None if run.heartbeat_at == run.begun_at else run.heartbeat_at, "last heartbeat", by_worker, None),
        (run.settled_at, "settled", settled_by, _joined(run.outcome, run.reason)),
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
        found.append(Event(row.at, "resumed", "worker", redact(detail, _ERROR_CHARACTERS), None))
    return found


def _audited(record: Any, *, errors: bool) -> Event | None:
    try:
        at = datetime.fromisoformat(record["at"])
        what, by, metadata = str(record["action"]), str(record["actor"]), record.get("metadata") or {}
        said = metadata.get("error") or metadata.get("reason")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if at.tzinfo is None:
        return None
    shown = said and (errors or (what in _OURS and by != ACTOR_OPERATOR))
    return Event(at, what, by, redact(str(said), _ERROR_CHARACTERS) if shown else None, None)


def _with_gaps(events: list[Event]) -> list[Event]:
    ordered = sorted(events, key=lambda event: event.at)
    before = [None, *ordered[:-1]]
    return [
        Event(event.at, event.what, event.by, event.detail, (event.at - last.at).total_seconds() if last else None)
        for last, event in zip(before, ordered, strict=True)
    ]
