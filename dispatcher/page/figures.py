"""Read the figures of the status page in one short transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from orcheo_dispatch.shared.ledger import overview
from orcheo_dispatch.shared.ledger import status as queries
from orcheo_dispatch.shared.ledger.operators.operations import read_entries
from orcheo_dispatch.shared.ledger.operators.pending import LateRuns, read_late, read_pending_workflows
from orcheo_dispatch.shared.ledger.statements import waits
from orcheo_dispatch.shared.ledger.statements.waits import may_see_waiting
from orcheo_dispatch.shared.ledger.status import LATE_SECONDS

MISSING_SECONDS = 600
"""Seconds after its last heartbeat during which a process that did not deregister is shown as missing."""
_LISTED = 10
_POLICIES = 50
_OPERATIONS = 12
_WORKFLOWS = 50
_PROCESSES = 200
_WORKFLOWS_AMONG = 5_000

type Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of the database at one instant, without the runs that a reader selected. Durations in seconds."""

    read_at: str
    promise: Row
    now: Row
    hour: Row
    lists: dict[str, list[Row] | None]
    """Runs by what is the matter with them. None: a table of this release is missing, or this role may not read it."""
    backlog: list[Row]
    """The workflows with the most pending runs."""
    processes: list[Row]
    workflows: list[str]
    isolated: list[Row]
    policies: list[Row] | None
    """What operators decided that is in force. None, as that of `operations`: as in `lists`."""
    operations: list[Row] | None
    beat_silent_for: float | None

    def alive(self, kind: str) -> bool:
        """Return whether a process of this kind is alive."""
        return any(process["kind"] == kind and process["alive"] for process in self.processes)


def read_figures(connection: Connection) -> Figures:
    """Return the figures. Raises what the driver raises: see `transaction`."""
    pending = connection.execute(queries.PENDING).one()
    dispatch = connection.execute(queries.DISPATCH).one()
    others = queries.read_others(connection)
    isolated_count, isolated = queries.read_isolated(connection)
    waiting = _waiting(connection)
    operators = bool(connection.scalar(overview.MAY_SEE_OPERATORS))
    processes = overview.rows_of(connection, overview.PROCESSES, missing=MISSING_SECONDS, limit=_PROCESSES)
    read_at = connection.exec_driver_sql("SELECT now()").scalar_one()
    late = read_late(connection) if pending.late else LateRuns()
    return Figures(
        read_at=read_at.isoformat(),
        promise={
            "late_after": LATE_SECONDS,
            "late": pending.late,
            **{f"late_{name}": count for name, count in asdict(late).items()},
            "late_share": pending.late / pending.pending if pending.pending else 0.0,
            "oldest": pending.oldest if pending.pending else None,
        },
        now={
            "pending": pending.pending,
            "pending_others": pending.pending_others,
            "queued": dispatch.claimed + dispatch.published,
            "running": dispatch.running,
            "capacity": sum(p["concurrency"] for p in processes if p["kind"] == "worker" and p["alive"]),
            "stuck": dispatch.stuck,
            "unclaimed": others.unclaimed if others else None,
            "begun_elsewhere": others.begun_elsewhere if others else None,
            "isolated": isolated_count,
            **{name: count for name, (count, _) in waiting.items()},
            "slots_due": connection.scalar(queries.SLOTS_DUE) or 0,
        },
        hour=_hour(connection),
        lists={
            "stuck": overview.shown(connection, overview.STUCK, limit=_LISTED),
            "lost": overview.shown(connection, overview.LOST, limit=_LISTED, newest=overview.NEWEST),
            **{name: rows for name, (_, rows) in waiting.items()},
        },
        backlog=[asdict(row) for row in read_pending_workflows(connection)] if pending.pending else [],
        processes=processes,
        workflows=[
            row["workflow_id"]
            for row in overview.rows_of(connection, overview.WORKFLOWS, limit=_WORKFLOWS, newest=_WORKFLOWS_AMONG)
        ],
        isolated=isolated,
        policies=overview.rows_of(connection, overview.IN_FORCE, limit=_POLICIES) if operators else None,
        operations=_operations(connection, read_at) if operators else None,
        beat_silent_for=connection.scalar(queries.BEAT_SILENT),
    )


def named(rows: Iterable[Row], names: dict[str, str]) -> list[Row]:
    """Return the rows, each with its workflow's name, or None if it is unknown or may not be read."""
    return [{**row, "workflow": names.get(row["workflow_id"] or "")} for row in rows]


def _waiting(connection: Connection) -> dict[str, tuple[int | None, list[Row] | None]]:
    """Return how many runs are tried again, wait for an answer, or failed for good, and the first of each."""
    if not may_see_waiting(connection):
        return dict.fromkeys(("retrying", "waiting", "dead"), (None, None))
    return {
        "retrying": overview.counted(connection, waits.RETRYING, limit=_LISTED),
        "waiting": overview.counted(connection, waits.WAITING, limit=_LISTED),
        "dead": overview.counted(connection, waits.DEAD, limit=_LISTED, newest=overview.NEWEST),
    }


def _operations(connection: Connection, now: datetime) -> list[Row]:
    entries = [asdict(entry) for entry in read_entries(connection, limit=_OPERATIONS)]
    return [{**entry, "ago": (now - entry.pop("at")).total_seconds()} for entry in entries]


def _hour(connection: Connection) -> Row:
    *minutes, whole = overview.rows_of(
        connection, overview.HOUR, hour_rows=overview.HOUR_ROWS, sampled=overview.SAMPLED
    )
    del whole["minute"]
    ended = whole["succeeded"] + whole["failed"] + whole["cancelled"]
    return {**whole, "complete": ended < overview.HOUR_ROWS, "minutes": minutes}
