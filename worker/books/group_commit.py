"""What the runs of a process leave in Orcheo's tables, written for many runs in one statement.

The idea is that of group commit: D. DeWitt et al., *Implementation Techniques for Main Memory Database Systems*, 1984.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, cast

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from worker.books.postgres import may_pass, outlast_outage
from worker.books.rows import Rows

SOON_SECONDS = 0.1
"""How long rows wait at most that nobody waits for: a trace is seen while its run is under way."""

LINGER_SECONDS = 0.01
"""How long rows that somebody waits for wait at most for those of other runs."""

_MAX_BATCH_BYTES = 4_000_000

# An upsert for each table, written as Orcheo and LangGraph write theirs; what is empty is left out. A record that is
# there already is that of an earlier attempt: it is continued, and ended if the run has ended.
_PARTS = {
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
       SET status = COALESCE(c.status, h.status), completed_at = COALESCE(c.completed_at, h.completed_at),
           error = CASE WHEN c.status IS NULL THEN h.error ELSE c.error END,
           trace_completed_at = COALESCE(c.completed_at, h.trace_completed_at), trace_last_span_at = c.last_at
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
    """Where the statements go; a pool, as a rule."""

    def connection_to_retry_on(self) -> AbstractAsyncContextManager[AsyncConnection[DictRow]]:
        """Return a connection for one statement, which may be repeated on another one."""
        ...


class Unit:
    """Rows of one run that are written together, or not at all.

    It may grow until it is `sealed`, which it is when its statement is made.
    """

    def __init__(self) -> None:
        self.sealed = False
        self.written: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done when it is written, or given up: then its result is why."""

    def rows(self) -> Rows:
        """Return the rows; it never fails."""
        raise NotImplementedError


class GroupCommit:
    """Writes the units of all runs of a process, one statement at a time.

    A statement is repeated while Postgres is away, for half a minute. Where Postgres refuses one of several units,
    each is written by itself, so that no run pays for another's rows. It holds a connection for a statement.
    """

    def __init__(self, pool: Connections, *, running: Callable[[], int]) -> None:
        self._pool = pool
        self._running = running
        """How many runs are under way: nobody lingers for others where there are none."""
        self._queued: list[Unit] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def add(self, unit: Unit) -> None:
        """Write the unit soon."""
        self._queued.append(unit)
        self._write_within(SOON_SECONDS)

    def drop(self, unit: Unit) -> None:
        """Do not write the unit, unless that has begun."""
        if not unit.sealed:
            self._queued.remove(unit)
            unit.sealed = True
            unit.written.set_result(None)

    def hasten(self) -> None:
        """Write all that is queued now, or as soon as some rows of other runs have come together with it."""
        self._write_within(LINGER_SECONDS if self._running() > 1 else 0)

    async def close(self) -> None:
        """Write what is queued."""
        while self._queued or self._writing is not None:
            self._write_within(0)
            await asyncio.wait([unit.written for unit in self._queued] or [cast("Any", self._writing)])

    def _write_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._writing is None and self._queued:
            self._writing = asyncio.get_running_loop().create_task(self._write_queued())

    async def _write_queued(self) -> None:
        """Write what is queued, and what is overdue by then."""
        while self._queued and self._timer is None:
            units, self._queued = self._queued, []
            await self._write(units)
        self._writing = None

    async def _write(self, units: Sequence[Unit]) -> None:
        sized = []
        for unit in units:
            unit.sealed = True
            sized.append((unit, unit.rows()))
        for some in _batches(sized):
            await self._write_batch(some)

    async def _write_batch(self, batch: Sequence[tuple[Unit, Rows]]) -> None:
        together = Rows()
        for _, rows in batch:
            together.extend(rows)
        try:
            await _execute(self._pool, together)
        except Exception as error:  # noqa: BLE001 - whoever waits for a unit decides what it means.
            if len(batch) > 1 and not may_pass(error):
                for each in batch:
                    await self._write_batch([each])
                return
            outcome: Exception | None = error
        else:
            outcome = None
        for unit, _ in batch:
            if not unit.written.done():
                unit.written.set_result(outcome)


def _batches(units: Sequence[tuple[Unit, Rows]]) -> list[list[tuple[Unit, Rows]]]:
    """Return the units in statements that are not too large."""
    batches: list[list[tuple[Unit, Rows]]] = []
    room = 0
    for each in units:
        size = each[1].size()
        if not batches or size > room:
            batches.append([])
            room = _MAX_BATCH_BYTES
        batches[-1].append(each)
        room -= size
    return batches


async def execute_rows(pool: Connections, rows: Rows) -> None:
    """Write the rows in one statement."""
    tables = [table for table in _PARTS if table in rows.texts]
    if not tables:
        return
    statement = "WITH " + ",".join(f"{table} AS ({_PARTS[table]}\n)" for table in tables) + " SELECT"
    parameters: dict[str, Any] = {table: f"[{','.join(rows.texts[table])}]" for table in tables}
    parameters |= {f"{table}_bytes": contents for table, contents in rows.contents.items()}
    async with pool.connection_to_retry_on() as connection:
        await connection.execute(cast("Any", statement), parameters)


_execute = outlast_outage(execute_rows)
