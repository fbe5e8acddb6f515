"""All that the database knows of a run, and how to write and read many of them at once.

Times are whole seconds before now(), or after it where the field says so; 0 is now(). So write, execute and read in one
transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, text

LIVE = ("claimed", "published", "running")
OUTCOMES = ("succeeded", "failed", "cancelled", "timed_out", "lost", "skipped", "released", "requeued")
FAILED = ("failed", "timed_out", "lost")
"""Outcomes of failed runs."""
STATUSES = ("pending", "running", "succeeded", "failed", "cancelled")
WORKSPACES = (None, "", "a", "b")
WORKFLOWS = ("w1", "w2")
US = "00000000-0000-0000-0000-000000000007"
OTHER = "00000000-0000-0000-0000-000000000009"
NOBODY = "00000000-0000-0000-0000-000000000000"
CHATKIT = "chatkit"
CREATED = "run_created {}"
STARTED_BY_WORKER = "worker run_started {}"
"""Audit records of a new run, after its author, and of one that Orcheo's own worker has begun."""


@dataclass(frozen=True)
class Entry:
    """The row of a run in the ledger."""

    state: str
    outcome: str | None = None
    fence: int = 1
    slot: str = "none"
    reason: str | None = None
    attempts: int = 0
    refunded: int = 0
    settled: int | None = None
    begun: int | None = None
    heartbeat: int | None = None
    lease: int | None = None
    """Seconds until it expires."""
    dispatcher: str = OTHER
    worker: str | None = None
    suspect: bool = False
    queue: str | None = None


@dataclass(frozen=True)
class Retry:
    """The row of a run that was tried again, or will be."""

    retries: int
    next: int | None
    """Seconds until the next attempt, if there is one."""
    start_over_from: str | None = None


@dataclass(frozen=True)
class Trace:
    """The record of a run in Orcheo's history, and its steps as JSON."""

    status: str
    error: str | None = None
    completed: int | None = None
    steps: tuple[str, ...] = ()

    @staticmethod
    def step(payload: dict[str, Any]) -> str:
        """Return a step as it is kept here."""
        return _json(payload)


@dataclass(frozen=True)
class State:
    """A run. `status` is None if the API has deleted it: then the ledger alone knows whose it was."""

    id: str
    status: str | None
    workflow: str = WORKFLOWS[0]
    workspace: str | None = "a"
    label: str = "webhook"
    created: int = 0
    updated: int = 0
    started: str | None = None
    """The payload's `started_at`, with "now" for now(); `completed` likewise."""
    completed: str | None = None
    error: str | None = None
    named: str | None = None
    """The workspace that the payload names."""
    source: str | None = None
    """Where the payload's input says that it comes from."""
    audit: tuple[str, ...] = ()
    entry: Entry | None = None
    retry: Retry | None = None
    question: int | None = None
    """Number of interrupts that wait for an answer."""
    checkpoint: str | None = None
    trace: Trace | None = None

    def moved(self, status: str, action: str, metadata: dict[str, Any], **changes: Any) -> State:
        """Return it with another status and one more audit record."""
        return replace(self, status=status, updated=0, audit=(*self.audit, _record(US, action, metadata)), **changes)

    def entered(self, **changes: Any) -> State:
        """Return it with a changed row in the ledger."""
        assert self.entry is not None
        return replace(self, entry=replace(self.entry, **changes))

    @property
    def live(self) -> bool:
        """Whether a worker executes it under a lease that has not expired."""
        return self.entry is not None and self.entry.state == "running" and (self.entry.lease or 0) >= 0

    @property
    def stuck(self) -> bool:
        """Whether it is running although its lease has expired."""
        return self.entry is not None and self.entry.state == "running" and (self.entry.lease or 0) < 0

    @property
    def scheduled(self) -> bool:
        """Whether it is to be tried again."""
        return self.retry is not None and self.retry.next is not None

    @property
    def dead(self) -> bool:
        """Whether it has failed and is not tried again."""
        failed = self.entry is not None and self.entry.outcome in FAILED
        return self.status == "failed" and failed and not self.scheduled

    @property
    def waits(self) -> bool:
        """Whether it waits for a person's answer."""
        return self.status == "running" and self.settled and bool(self.question)

    @property
    def of_chatkit(self) -> bool:
        """Whether ChatKit's own process executes it, which writes any label but those of Orcheo's triggers."""
        return self.label != "webhook" and self.source == CHATKIT and self.audit[0].startswith(f"{self.label} ")

    @property
    def settled(self) -> bool:
        """Whether its row in the ledger is settled."""
        return self.entry is not None and self.entry.state == "settled"


_RUNS = text("""
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT x.id, x.workflow, 'v', x.status, x.label,
       jsonb_build_object('id', x.id, 'status', x.status, 'started_at', x.started, 'completed_at', x.completed,
                          'error', x.error, 'audit_log', x.audit, 'output_payload', 1, 'workspace_id', x.named,
                          'input_payload', jsonb_build_object('source', x.source), 'runnable_config', '{}'::jsonb),
       now() - make_interval(secs => x.created), now() - make_interval(secs => x.updated), x.workspace
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(id text, workflow text, status text, label text, started text, completed text, error text, named text,
            source text, audit jsonb, created float8, updated float8, workspace text)
""")
_ENTRIES = text("""
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot,
                                      reason, attempts, refunded, claimed_at, settled_at, begun_at, heartbeat_at,
                                      lease_expires_at, dispatcher_id, worker_id, suspect, queue)
SELECT x.id, x.workflow, x.workspace, x.label, x.state, x.outcome, x.fence, x.slot, x.reason, x.attempts, x.refunded,
       now() - interval '1 h', now() - make_interval(secs => x.settled), now() - make_interval(secs => x.begun),
       now() - make_interval(secs => x.heartbeat), now() + make_interval(secs => x.lease), x.dispatcher, x.worker,
       x.suspect, x.queue
  FROM jsonb_to_recordset(CAST(:rows AS jsonb))
       AS x(id text, workflow text, workspace text, label text, state text, outcome text, fence bigint, slot text,
            reason text, attempts integer, refunded integer, settled float8, begun float8, heartbeat float8,
            lease float8, dispatcher uuid, worker uuid, suspect boolean, queue text)
""")
_RETRIES = text("""
INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at, start_over_from)
SELECT x.id, x.retries, now() + make_interval(secs => x.next), x.start_over_from
  FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id text, retries integer, next float8, start_over_from text)
""")
_QUESTIONS = text("""
INSERT INTO orcheo_dispatch.question (run_id, checkpoint_id, interrupts)
SELECT x.id, 'c', x.question FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id text, question integer)
""")
_CHECKPOINTS = text("""
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
SELECT x.id, '', x.checkpoint, '{}', '{}' FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id text, checkpoint text)
""")
_TRACES = text("""
WITH given AS MATERIALIZED (
    SELECT x.* FROM jsonb_to_recordset(CAST(:rows AS jsonb))
        AS x(id text, workflow text, status text, error text, completed float8, steps jsonb)
), record AS (
    INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at, error, completed_at)
    SELECT g.id, g.workflow, '{}', g.status, now() - interval '1 h', g.error,
           now() - make_interval(secs => g.completed)
      FROM given AS g
)
INSERT INTO execution_history_steps (execution_id, step_index, at, payload)
SELECT g.id, s.n - 1, now(), CAST(s.step AS jsonb)
  FROM given AS g CROSS JOIN LATERAL jsonb_array_elements_text(g.steps) WITH ORDINALITY AS s(step, n)
""")
_STATES = text("""
SELECT COALESCE(r.id, d.run_id) AS id, r.status, r.payload, orcheo_dispatch.iso(now()) AS now,
       COALESCE(r.workflow_id, d.workflow_id) AS workflow, COALESCE(r.workspace_id, d.workspace_id) AS workspace,
       COALESCE(r.triggered_by, d.triggered_by) AS label,
       (d.workflow_id, d.workspace_id, d.triggered_by) IS DISTINCT FROM (r.workflow_id, r.workspace_id, r.triggered_by)
           AS of_another,
       EXTRACT(epoch FROM now() - r.created_at)::integer AS created,
       EXTRACT(epoch FROM now() - r.updated_at)::integer AS updated,
       d.state, d.outcome, d.fence, d.slot, d.reason, d.attempts, d.refunded, d.dispatcher_id::text AS dispatcher,
       d.worker_id::text AS worker, d.suspect, d.queue,
       EXTRACT(epoch FROM now() - d.settled_at)::integer AS settled,
       EXTRACT(epoch FROM now() - d.begun_at)::integer AS begun,
       EXTRACT(epoch FROM now() - d.heartbeat_at)::integer AS heartbeat,
       EXTRACT(epoch FROM d.lease_expires_at - now())::integer AS lease,
       t.retries, EXTRACT(epoch FROM t.next_at - now())::integer AS next, t.start_over_from,
       q.interrupts AS question, c.checkpoint_id AS checkpoint, h.status AS trace, h.error AS trace_error,
       EXTRACT(epoch FROM now() - h.completed_at)::integer AS trace_completed,
       ARRAY(SELECT s.payload FROM execution_history_steps AS s
              WHERE s.execution_id = h.execution_id ORDER BY s.step_index) AS steps,
       ARRAY(SELECT s.step_index FROM execution_history_steps AS s
              WHERE s.execution_id = h.execution_id ORDER BY s.step_index) AS places
  FROM workflow_runs AS r
  FULL JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = d.run_id
  LEFT JOIN orcheo_dispatch.question AS q ON q.run_id = d.run_id
  LEFT JOIN checkpoints AS c ON c.thread_id = COALESCE(r.id, d.run_id)
  LEFT JOIN execution_history AS h ON h.execution_id = COALESCE(r.id, d.run_id)
""")


def write(connection: Connection, states: Iterable[State]) -> None:
    """Insert these runs into tables that are empty."""
    states = [*states]
    runs = [{**_own(state), "audit": [_audit_record(each) for each in state.audit]} for state in states if state.status]
    parts = {
        _RUNS: runs,
        _ENTRIES: [{**_own(each), **asdict(each.entry)} for each in states if each.entry],
        _RETRIES: [{"id": each.id, **asdict(each.retry)} for each in states if each.retry],
        _QUESTIONS: [_own(each) for each in states if each.question],
        _CHECKPOINTS: [_own(each) for each in states if each.checkpoint],
        _TRACES: [{**_own(each), **asdict(each.trace)} for each in states if each.trace],
    }
    for statement, rows in parts.items():
        if rows:
            connection.execute(statement, {"rows": json.dumps(rows)})


def read(connection: Connection) -> dict[str, State]:
    """Return all runs by their ids, after making sure that column and payload, and run and ledger, agree."""
    return {row.id: _state(row) for row in connection.execute(_STATES)}


def _state(row: Any) -> State:
    payload = row.payload or {}
    assert row.status == payload.get("status")
    assert row.status is None or row.state is None or not row.of_another
    assert row.places == [*range(len(row.steps))]
    assert row.updated != 0 or payload.get("updated_at") in (None, row.now)
    entry = row.state and Entry(
        *(row.state, row.outcome, row.fence, row.slot, row.reason, row.attempts, row.refunded, row.settled),
        *(row.begun, row.heartbeat, row.lease, row.dispatcher, row.worker, row.suspect, row.queue),
    )

    def at(name: str) -> str | None:
        found: str | None = payload.get(name)
        return "now" if found == row.now else found

    return State(
        row.id,
        row.status,
        row.workflow,
        row.workspace,
        row.label,
        created=row.created or 0,
        updated=row.updated or 0,
        started=at("started_at"),
        completed=at("completed_at"),
        error=payload.get("error"),
        named=payload.get("workspace_id"),
        source=payload.get("input_payload", {}).get("source"),
        audit=tuple(_record(each["actor"], each["action"], each["metadata"]) for each in payload.get("audit_log", ())),
        entry=entry or None,
        retry=None if row.retries is None else Retry(row.retries, row.next, row.start_over_from),
        question=row.question,
        checkpoint=row.checkpoint,
        trace=row.trace and Trace(row.trace, row.trace_error, row.trace_completed, tuple(map(_json, row.steps))),
    )


def _own(state: State) -> dict[str, Any]:
    """Return the fields of the run itself."""
    return {name: value for name, value in vars(state).items() if name not in ("entry", "retry", "trace")}


def _record(actor: str, action: str, metadata: dict[str, Any]) -> str:
    return f"{actor} {action} {_json(metadata)}"


def _audit_record(record: str) -> dict[str, Any]:
    actor, action, metadata = record.split(" ", 2)
    return {"actor": actor, "action": action, "at": "then", "metadata": json.loads(metadata)}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
