"""Rows beside those of runs, written by a session that is under test: processes, workflows, use of rates, roles."""

from __future__ import annotations

from collections.abc import Collection
from uuid import uuid4

from sqlalchemy import Connection, text

READER = "reader"
"""Name of the role that `become_reader` creates."""

_PROCESS = text("""
INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, running, queues, triggers, seen_at)
VALUES (CAST(:id AS uuid), :kind, 'h', :pid, '1', :concurrency, :running, CAST(:queues AS text[]),
        CAST(:triggers AS text[]), now() - make_interval(secs => :seen))
""")
_WORKFLOW = text("""
INSERT INTO workflows (id, handle, is_archived, payload, created_at, updated_at)
VALUES (:id, :handle, false, CAST(:payload AS jsonb), now(), now())
""")
_USE = text("""
INSERT INTO orcheo_dispatch.rate_use (workspace_id, workflow_id, runs, until)
VALUES (:workspace, :workflow, :runs, now() + make_interval(secs => :left))
""")


def add_process(
    connection: Connection,
    kind: str,
    *,
    seen: float = 0,
    id: str | None = None,  # noqa: A002 - as its column
    pid: int = 1,
    concurrency: int = 1,
    running: int = 0,
    queues: Collection[str] | None = None,
    triggers: Collection[str] | None = None,
) -> None:
    """Insert a process that was last seen this many seconds ago."""
    terms = {"kind": kind, "seen": seen, "id": id or str(uuid4()), "pid": pid}
    terms |= {"concurrency": concurrency, "running": running}
    told = {"queues": queues and [*queues], "triggers": triggers and [*triggers]}
    connection.execute(_PROCESS, {**terms, **told})


def add_workflow(connection: Connection, workflow: str, *, handle: str | None = None, payload: str = "{}") -> None:
    """Insert a workflow; `payload` is JSON."""
    connection.execute(_WORKFLOW, {"id": workflow, "handle": handle, "payload": payload})


def add_use(connection: Connection, scope: tuple[str, str], runs: int, *, left: float) -> None:
    """Insert claims that count against the rate of a workspace and a workflow for so many seconds."""
    connection.execute(_USE, {"workspace": scope[0], "workflow": scope[1], "runs": runs, "left": left})


def become_reader(connection: Connection, *rights: str) -> None:
    """Continue as a new role until the transaction ends; `rights` are like `ON table` or `(column) ON table`."""
    connection.execute(text(f"CREATE ROLE {READER}"))
    connection.execute(text(f"GRANT USAGE ON SCHEMA orcheo_dispatch TO {READER}"))
    for right in rights:
        connection.execute(text(f"GRANT SELECT {right} TO {READER}"))
    connection.execute(text(f"SET LOCAL ROLE {READER}"))
