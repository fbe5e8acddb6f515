"""Rows of Orcheo's and LangGraph's tables, and the one statement that writes them."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import DictRow

# One upsert per table, written as Orcheo and LangGraph write theirs; tables without rows are left out. An existing
# record belongs to an earlier attempt: it is continued, and ended if the run has ended. A run that starts over forgets
# its checkpoints first, in a statement of its own.
_FORGET = """
    DELETE FROM {table} AS t
     WHERE t.thread_id IN (SELECT f.thread_id FROM jsonb_to_recordset(%({name})s::jsonb) AS f(thread_id text))"""
_FORGOTTEN = {
    "forgotten": "checkpoints",
    "forgotten_blobs": "checkpoint_blobs",
    "forgotten_writes": "checkpoint_writes",
}
_PARTS = {
    **{name: _FORGET.format(table=table, name=name) for name, table in _FORGOTTEN.items()},
    "records": """
    INSERT INTO execution_history AS h (execution_id, workflow_id, workspace_id, inputs, runnable_config, tags,
           callbacks, metadata, run_name, status, started_at, completed_at, error, trace_started_at,
           trace_completed_at, trace_last_span_at)
    SELECT execution_id, workflow_id, workspace_id, inputs, runnable_config, tags, callbacks, metadata, run_name,
           status, started_at, completed_at, error, started_at, completed_at, last_at
      FROM jsonb_to_recordset(%(records)s::jsonb) AS r(execution_id text, workflow_id text, workspace_id text,
           inputs jsonb, runnable_config jsonb, tags jsonb, callbacks jsonb, metadata jsonb, run_name text,
           status text, started_at timestamptz, completed_at timestamptz, error text, last_at timestamptz)
        ON CONFLICT (execution_id) DO UPDATE
       SET status = EXCLUDED.status, completed_at = EXCLUDED.completed_at, error = EXCLUDED.error,
           trace_completed_at = EXCLUDED.completed_at, trace_last_span_at = EXCLUDED.trace_last_span_at
     WHERE EXCLUDED.status <> 'running'""",
    "changes": """
    UPDATE execution_history AS h
       SET status = COALESCE(c.status, h.status),
           completed_at = CASE WHEN c.status IS NULL THEN h.completed_at ELSE c.completed_at END,
           error = CASE WHEN c.status IS NULL THEN h.error ELSE c.error END,
           trace_completed_at = CASE WHEN c.status IS NULL THEN h.trace_completed_at ELSE c.completed_at END,
           trace_last_span_at = c.last_at
      FROM jsonb_to_recordset(%(changes)s::jsonb) AS c(execution_id text, status text, completed_at timestamptz,
           error text, last_at timestamptz)
     WHERE h.execution_id = c.execution_id""",
    "steps": """
    INSERT INTO execution_history_steps (execution_id, step_index, at, payload)
    SELECT s.execution_id, last.step_index + row_number() OVER (PARTITION BY s.execution_id ORDER BY s.place),
           s.at, s.payload
      FROM ROWS FROM (jsonb_to_recordset(%(steps)s::jsonb) AS (execution_id text, at timestamptz, payload jsonb))
           WITH ORDINALITY AS s(execution_id, at, payload, place),
           LATERAL (SELECT COALESCE(max(e.step_index), -1) AS step_index FROM execution_history_steps AS e
                     WHERE e.execution_id = s.execution_id) AS last""",
    "blobs": """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT thread_id, checkpoint_ns, channel, version, type, blob
      FROM ROWS FROM (jsonb_to_recordset(%(blobs)s::jsonb) AS (thread_id text, checkpoint_ns text, channel text,
           version text, type text), unnest(%(blobs_bytes)b::bytea[]))
        AS b(thread_id, checkpoint_ns, channel, version, type, blob)
        ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING""",
    "checkpoints": """
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
      FROM jsonb_to_recordset(%(checkpoints)s::jsonb) AS c(thread_id text, checkpoint_ns text, checkpoint_id text,
           parent_checkpoint_id text, checkpoint jsonb, metadata jsonb)
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
        DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata""",
    "writes": """
    INSERT INTO checkpoint_writes AS w (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type,
           blob)
    SELECT thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
      FROM ROWS FROM (jsonb_to_recordset(%(writes)s::jsonb) AS (thread_id text, checkpoint_ns text,
           checkpoint_id text, task_id text, task_path text, idx int, channel text, type text),
           unnest(%(writes_bytes)b::bytea[]))
        AS n(thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
        DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob WHERE w.idx < 0""",
}


class Connections(Protocol):
    """Executes the statements; usually a pool."""

    def connection_to_retry_on(self) -> AbstractAsyncContextManager[AsyncConnection[DictRow]]:
        """Return a connection for one statement, which may be retried on another one."""
        ...


# With the claims of runs, only rows of runs that this worker still holds are written, and their ids are returned. The
# lock keeps a run from being reaped until they are committed. A run that has finished a step gets its attempts back.
_HELD = """
    SELECT d.run_id FROM unnest(%(run_ids)s::text[], %(fences)s::bigint[]) AS g(run_id, fence)
      JOIN orcheo_dispatch.dispatch AS d
        ON d.run_id = g.run_id AND d.fence = g.fence AND d.state = 'running' AND d.worker_id = %(worker_id)s
     ORDER BY d.run_id FOR SHARE OF d"""
_PROGRESSED = """
    UPDATE orcheo_dispatch.dispatch AS d SET refunded = d.attempts
     WHERE d.run_id IN (SELECT run_id FROM held) AND d.run_id = ANY (%(progressed)s::text[])
       AND d.refunded < d.attempts"""
_RUN_OF = dict.fromkeys(("records", "changes", "steps"), "execution_id")
"""Column with the id of the run; `thread_id` in tables of checkpoints."""


@dataclass(slots=True)
class Rows:
    """Rows by table, each a JSON object; `contents` has, in the same order, what JSON cannot hold."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    contents: dict[str, list[bytes | None]] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    """Fences of the runs whose rows are written only while this worker holds them, by run id."""
    progressed: set[str] = field(default_factory=set)
    """Those of them that have finished a step."""
    stale: set[str] = field(default_factory=set)
    """Once written: those whose rows were not written, because this worker does not hold them."""

    def add(self, table: str, row: str) -> None:
        """Add a row without bytes."""
        self.texts.setdefault(table, []).append(row)

    def add_bytes(self, table: str, row: str, content: bytes | None) -> None:
        """Add a row with bytes."""
        self.add(table, row)
        self.contents.setdefault(table, []).append(content)

    def extend(self, other: Rows) -> None:
        """Add all rows of `other`."""
        for table, rows in other.texts.items():
            self.texts.setdefault(table, []).extend(rows)
        for table, contents in other.contents.items():
            self.contents.setdefault(table, []).extend(contents)
        self.claims |= other.claims
        self.progressed |= other.progressed

    def size(self) -> int:
        """Return the approximate size of the rows (bytes)."""
        texts = sum(len(row) for rows in self.texts.values() for row in rows)
        return texts + sum(len(each or b"") for contents in self.contents.values() for each in contents)


def rows_to_forget(run_id: str) -> Rows:
    """Return what deletes all checkpoints of a run."""
    rows = Rows()
    for name in _FORGOTTEN:
        rows.add(name, json.dumps({"thread_id": run_id}))
    return rows


async def execute_rows(pool: Connections, rows: Rows) -> None:
    """Write the rows in one statement."""
    async with pool.connection_to_retry_on() as connection:
        await connection.execute(*statement_of(rows))


def statement_of(rows: Rows, worker_id: UUID | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the statement that writes these rows, and its parameters; with `worker_id` and claims, it checks them."""
    tables = [table for table in _PARTS if table in rows.texts]
    guarded = worker_id is not None and bool(rows.claims)
    parts = [f"{table} AS ({_guarded(table) if guarded else _PARTS[table]}\n)" for table in tables]
    parameters: dict[str, Any] = {table: f"[{','.join(rows.texts[table])}]" for table in tables}
    parameters |= {f"{table}_bytes": contents for table, contents in rows.contents.items()}
    if not guarded:
        return cast("Any", f"WITH {','.join(parts)} SELECT" if tables else "SELECT"), parameters
    held = f"held AS MATERIALIZED ({_HELD}\n)"
    parameters |= {"run_ids": [*rows.claims], "fences": [*rows.claims.values()], "worker_id": worker_id}
    if rows.progressed:
        parts.append(f"progressed AS ({_PROGRESSED}\n)")
        parameters["progressed"] = [*rows.progressed]
    return cast("Any", f"WITH {','.join([held, *parts])} SELECT run_id FROM held"), parameters


def _guarded(table: str) -> str:
    """Return the part of a table that writes only rows of runs in `held`."""
    part, condition = _PARTS[table], f"{_RUN_OF.get(table, 'thread_id')} IN (SELECT run_id FROM held)"
    if table in _FORGOTTEN:
        return f"{part} AND t.{condition}"
    if table == "changes":
        return f"{part} AND c.{condition}"
    if table == "steps":
        return f"{part}\n     WHERE s.{condition}"
    return part.replace("        ON CONFLICT", f"     WHERE {condition}\n        ON CONFLICT", 1)
