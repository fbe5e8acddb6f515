"""Runs by the million for measuring claims: pending ones, and ones that ended, filled in by the server itself."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
from orcheo.models import WorkflowRun

Connection = psycopg.Connection[Any]

WORKFLOWS = 50
WORKSPACES = 5

# Ids are hashes, so that they fall all over the indexes as the API's do.
_PENDING = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT gen_random_uuid()::text, coalesce(%(workflow)s, 'workflow-' || n %% {workflows}), 'version', 'pending',
       'webhook', %(payload)s::jsonb, clock_timestamp(), now(), 'workspace-' || n %% {workspaces}
  FROM generate_series(1, %(count)s) AS n
"""
_ENDED = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT md5(n::text)::uuid::text, 'workflow-' || n %% {workflows}, 'version', 'succeeded', 'webhook',
       '{{"status": "succeeded"}}', at, at, 'workspace-' || n %% {workspaces}
  FROM generate_series(1, %(count)s) AS n, LATERAL (SELECT now() - interval '1 day' - n * interval '20 ms') AS t(at)
"""
_SETTLED = """
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, attempts, slot, created_at, claimed_at,
        published_at, begun_at, heartbeat_at, settled_at, dispatcher_id, worker_id)
SELECT md5(n::text)::uuid::text, 'workflow-' || n %% {workflows}, 'workspace-' || n %% {workspaces}, 'webhook',
       'settled', 'succeeded', 1, 1, 'returned', at, at, at, at, at, at, %(process)s, %(process)s
  FROM generate_series(1, %(count)s) AS n, LATERAL (SELECT now() - interval '1 day' - n * interval '20 ms') AS t(at)
"""
_TABLES = ("workflow_runs", "orcheo_dispatch.dispatch")
# The foreign keys that refer to a table before its primary key, which they depend on.
_KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE conrelid = %(table)s::regclass AND contype = 'p' OR confrelid = %(table)s::regclass AND contype = 'f'
 ORDER BY contype = 'p'
"""
_INDEXES = """
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
 WHERE indrelid = %s::regclass AND NOT indisprimary
"""

# What workers make of claims: the same updates of each row, for all of them at once.
_WORK = (
    "UPDATE orcheo_dispatch.dispatch SET state = 'published', published_at = now() WHERE state = 'claimed'",
    """
    WITH begun AS (
        UPDATE orcheo_dispatch.dispatch
           SET state = 'running', begun_at = now(), heartbeat_at = now(), attempts = 1, worker_id = dispatcher_id
         WHERE state = 'published' RETURNING run_id)
    UPDATE workflow_runs SET status = 'running', updated_at = now() FROM begun WHERE id = run_id
    """,
    """
    WITH ended AS (
        UPDATE orcheo_dispatch.dispatch
           SET state = 'settled', outcome = 'succeeded', settled_at = now(), lease_expires_at = NULL, slot = 'returned'
         WHERE state = 'running' RETURNING run_id)
    UPDATE workflow_runs SET status = 'succeeded', updated_at = now() FROM ended WHERE id = run_id
    """,
)


def add_pending(connection: Connection, count: int, *, workflow: str | None = None) -> None:
    """Add pending runs, younger than all others: of this workflow, or in turn of 50."""
    query = _PENDING.format(workflows=WORKFLOWS, workspaces=WORKSPACES)
    connection.execute(query, {"count": count, "workflow": workflow, "payload": _payload()})


def add_ended(connection: Connection, count: int) -> None:
    """Add runs that ended more than a day ago, with their ledger rows. Builds the indexes anew: far faster."""
    makers = [maker for table in _TABLES for maker in _drop_indexes(connection, table)]
    parameters = {"count": count, "process": UUID(int=1)}
    for query in (_ENDED, _SETTLED):
        connection.execute(query.format(workflows=WORKFLOWS, workspaces=WORKSPACES), parameters)
    connection.execute("SET maintenance_work_mem = '1GB'")
    for maker in makers:
        connection.execute(maker)
    connection.execute("RESET maintenance_work_mem")


def vacuum(connection: Connection) -> None:
    """Leave the tables as autovacuum would in time."""
    for table in _TABLES:
        connection.execute(f"VACUUM (ANALYZE) {table}")


def analyze(connection: Connection) -> None:
    """Bring the statistics up to date."""
    for table in _TABLES:
        connection.execute(f"ANALYZE {table}")


def work_off(connection: Connection) -> int:
    """Begin and settle all that is claimed, as workers would; return how many runs."""
    return [connection.execute(statement).rowcount for statement in _WORK][-1]


def _drop_indexes(connection: Connection, table: str) -> list[str]:
    """Drop the indexes of a table and return the statements that make them again."""
    makers: list[str] = []
    for of, name, definition in connection.execute(_KEYS, {"table": table}).fetchall():
        connection.execute(f'ALTER TABLE {of} DROP CONSTRAINT "{name}"')
        makers.insert(0, f'ALTER TABLE {of} ADD CONSTRAINT "{name}" {definition}')
    for name, definition in connection.execute(_INDEXES, (table,)).fetchall():
        connection.execute(f"DROP INDEX {name}")
        makers.append(definition)
    return makers


def _payload() -> str:
    """Return a run's payload as Orcheo's model writes it, about a kilobyte; a claim never reads it."""
    run = WorkflowRun(
        workflow_id=UUID(int=1),
        workflow_version_id=UUID(int=2),
        triggered_by="webhook",
        input_payload={"body": {"name": "Ada", "text": "x" * 256}},
    )
    run.record_event(actor="webhook", action="run_created")
    return json.dumps(run.model_dump(mode="json"))
