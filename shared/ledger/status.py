"""Queries for operators. They only read, and each can be pasted into psql."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.isolations import Isolated
from orcheo_dispatch.shared.ledger.operators.pending import PendingWorkflow, read_pending_workflows
from orcheo_dispatch.shared.ledger.operators.policies import MOST, Policy
from orcheo_dispatch.shared.ledger.statements.policy import NOW, POLICIES

LATE_SECONDS = 300
"""Age (seconds) from which `all_pending_runs` shows a pending run as late. Only for texts; decisions use the view."""
ISOLATED_SHOWN = 50

_RUNS_BY_STATUS = text("SELECT status, count(*) AS runs FROM workflow_runs GROUP BY status ORDER BY status")

# Runs that no dispatcher claims (ChatKit's, for example) are counted apart and are never late.
PENDING = text("""
SELECT COALESCE(max(runs) FILTER (WHERE ours), 0) AS pending,
       COALESCE(max(runs) FILTER (WHERE NOT ours), 0) AS pending_others,
       COALESCE(max(late) FILTER (WHERE ours), 0) AS late,
       COALESCE(EXTRACT(epoch FROM now() - max(oldest) FILTER (WHERE ours)), 0)::float8 AS oldest
  FROM (SELECT ours, count(*) AS runs, count(*) FILTER (WHERE late) AS late, min(created_at) AS oldest
          FROM orcheo_dispatch.all_pending_runs GROUP BY ours) AS p
""")

# Whether the views exist and this role may read them. Nothing depends on them.
MAY_SEE_OTHERS = text("""
SELECT bool_and(COALESCE(has_table_privilege(to_regclass(v.name), 'SELECT'), false))
  FROM (VALUES ('orcheo_dispatch.unclaimed_runs'), ('orcheo_dispatch.begun_elsewhere')) AS v(name)
""")
# Pending runs that no dispatcher will claim, and runs that none of our workers began, as the views define them.
OTHERS = text("""
SELECT (SELECT count(*) FROM orcheo_dispatch.unclaimed_runs) AS unclaimed,
       (SELECT count(*) FROM orcheo_dispatch.begun_elsewhere) AS begun_elsewhere
""")

# The same for the view of isolated workflows.
MAY_SEE_ISOLATED = text(
    "SELECT COALESCE(has_table_privilege(to_regclass('orcheo_dispatch.isolated_workflows'), 'SELECT'), false)"
)
ISOLATED_COUNT = text("SELECT count(*) FROM orcheo_dispatch.isolated_workflows")
ISOLATED = text("""
SELECT workflow_id, workflow_version_id, reason, by, since, until, last_seen_at, times
  FROM orcheo_dispatch.isolated_workflows
 ORDER BY COALESCE(last_seen_at, since) DESC, workflow_id, workflow_version_id LIMIT :limit
""")

# The same for policies.
MAY_SEE_POLICIES = text("SELECT COALESCE(has_table_privilege(to_regclass('orcheo_dispatch.policy'), 'SELECT'), false)")

DISPATCH = text("""
SELECT count(*) FILTER (WHERE state = 'claimed') AS claimed,
       count(*) FILTER (WHERE state = 'published') AS published,
       count(*) FILTER (WHERE state = 'running') AS running,
       count(*) FILTER (WHERE stuck) AS stuck
  FROM orcheo_dispatch.live_runs
""")

# Whether the function exists; an older `migrate` did not make it.
MAY_SEE_WANTED = text("""
SELECT COALESCE(has_function_privilege(
           to_regprocedure('orcheo_dispatch.wanted_workers_for(double precision, integer)'), 'EXECUTE'), false)
""")
WANTED_WORKERS = text("SELECT workers FROM orcheo_dispatch.wanted_workers_for(:target_delay)")

SLOTS_DUE = text("SELECT count(*) FROM orcheo_dispatch.dispatch WHERE slot = 'due'")

_PROCESSES = text("""
SELECT kind, id::text AS id, host, pid, version, concurrency, running, started_at,
       seen_seconds_ago AS seen_ago
  FROM orcheo_dispatch.processes
 WHERE alive
 ORDER BY kind, host, started_at LIMIT 10000
""")

# How long no Beat has been seen; NULL if none was ever seen, or none for a day, after which its row is pruned.
BEAT_SILENT = text("""
SELECT min(seen_seconds_ago) FROM orcheo_dispatch.processes WHERE kind = 'beat'
""")


@dataclass(frozen=True, slots=True)
class Others:
    """Numbers of runs that our workers do not execute."""

    unclaimed: int
    begun_elsewhere: int


def read_others(connection: Connection) -> Others | None:
    """Return these numbers, or None if the views are missing or this role may not read them."""
    if not connection.scalar(MAY_SEE_OTHERS):
        return None
    return Others(**connection.execute(OTHERS).mappings().one())


def read_isolated(connection: Connection) -> tuple[int | None, list[dict[str, Any]]]:
    """Return the number of isolated workflows or versions, None if this role may not read it, and the latest ones."""
    if not connection.scalar(MAY_SEE_ISOLATED):
        return None, []
    found = [dict(row) for row in connection.execute(ISOLATED, {"limit": ISOLATED_SHOWN}).mappings()]
    return len(found) if len(found) < ISOLATED_SHOWN else count_isolated(connection), found


def read_switched(connection: Connection) -> tuple[bool | None, list[Paused]]:
    """Return whether maintenance is on, None if this role may not read policies, and the scopes that are paused."""
    if not connection.scalar(MAY_SEE_POLICIES):
        return None, []
    everything = {"workspace_id": None, "workflow_id": None, "limit": MOST}
    rows = [Policy(**row) for row in connection.execute(POLICIES, everything).mappings()]
    now = connection.scalar(NOW)
    paused = [
        Paused(
            str(row.scope), row.workspace_id or None, row.workflow_id or None, row.paused_until, row.why, row.by, row.at
        )
        for row in rows
        if now is not None and row.paused_at(now)
    ]
    return any(row.maintenance for row in rows), paused


def count_isolated(connection: Connection) -> int | None:
    """Return how many workflows or versions are isolated; None if this role may not read it."""
    return connection.scalar(ISOLATED_COUNT) if connection.scalar(MAY_SEE_ISOLATED) else None


def count_wanted_workers(connection: Connection, target_delay: float) -> int | None:
    """Return how many workers are needed to begin all due runs within the target delay; None if unknown here."""
    if not connection.scalar(MAY_SEE_WANTED):
        return None
    workers: int | None = connection.scalar(WANTED_WORKERS, {"target_delay": target_delay})
    return workers


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process that is alive. `seen_ago` is in seconds."""

    kind: str
    id: str
    host: str
    pid: int
    version: str
    concurrency: int
    running: int
    started_at: datetime
    seen_ago: float


@dataclass(frozen=True, slots=True)
class Paused:
    """A scope whose runs are paused."""

    scope: str
    """`all runs`, `workspace W` or `workflow F`."""
    workspace_id: str | None
    workflow_id: str | None
    until: datetime | None
    why: str | None
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """State of the whole system at one instant. Ages are in seconds."""

    runs: dict[str, int]
    pending: int
    pending_others: int
    oldest_pending_age: float
    late_pending: int
    late_share: float
    """The share of pending runs older than five minutes, 0 to 1: the promise is 0."""
    claimed: int
    published: int
    running: int
    stuck: int
    slots_due: int
    unclaimed: int | None
    """Pending runs that no dispatcher will claim; None if the view is missing or this role may not read it."""
    begun_elsewhere: int | None
    """Runs that the API itself or Orcheo's own worker began in the last ten minutes; None as for `unclaimed`."""
    isolated: int | None
    """Number of isolated workflows or versions; None as for `unclaimed`."""
    beat_silent_for: float | None
    """Seconds since a dispatcher took a tick of any Beat; None if there was none for a day."""
    maintenance: bool | None
    """Whether no run is claimed, because an operator switched maintenance on; None as for `unclaimed`."""
    processes: list[ProcessRow] = field(default_factory=list)
    isolated_workflows: list[Isolated] = field(default_factory=list)
    """The workflows or versions that were isolated, or did harm, most recently."""
    paused: list[Paused] = field(default_factory=list)
    """The scopes that operators have paused."""
    pending_workflows: list[PendingWorkflow] = field(default_factory=list)
    """The workflows with the most pending runs, five at most."""

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its keys are stable."""
        return asdict(self)


def read_status(engine: Engine) -> Status:
    """Return the state of the whole system. Raises `DatabaseError`; `SchemaError` if our schema is missing."""
    with transaction(engine) as connection:
        by_status = {row.status: row.runs for row in connection.execute(_RUNS_BY_STATUS)}
        pending = connection.execute(PENDING).one()
        dispatch = connection.execute(DISPATCH).one()
        slots_due = connection.scalar(SLOTS_DUE)
        others = read_others(connection)
        isolated, isolated_workflows = read_isolated(connection)
        beat_silent_for = connection.scalar(BEAT_SILENT)
        maintenance, paused = read_switched(connection)
        pending_workflows = read_pending_workflows(connection) if pending.pending else []
        processes = [ProcessRow(**row) for row in connection.execute(_PROCESSES).mappings()]
    return Status(
        runs=by_status,
        pending=pending.pending,
        pending_others=pending.pending_others,
        oldest_pending_age=pending.oldest,
        late_pending=pending.late,
        late_share=pending.late / pending.pending if pending.pending else 0.0,
        claimed=dispatch.claimed,
        published=dispatch.published,
        running=dispatch.running,
        stuck=dispatch.stuck,
        slots_due=slots_due or 0,
        unclaimed=others.unclaimed if others else None,
        begun_elsewhere=others.begun_elsewhere if others else None,
        isolated=isolated,
        beat_silent_for=beat_silent_for,
        maintenance=maintenance,
        processes=processes,
        isolated_workflows=[Isolated(**row) for row in isolated_workflows],
        paused=paused,
        pending_workflows=pending_workflows,
    )
