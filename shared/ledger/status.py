"""Queries for operators. They only read; each can be pasted into psql."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.isolations import Isolated

LATE_SECONDS = 300
"""The promise: no pending run is older than five minutes."""
ALIVE_SECONDS = 30
ISOLATED_SHOWN = 50

_RUNS_BY_STATUS = text("SELECT status, count(*) AS runs FROM workflow_runs GROUP BY status ORDER BY status")

# Runs that nobody asked us to dispatch (of ChatKit, say) are counted apart: they are not late, they are not ours. A run
# with a row in the ledger is ours whatever its label: the API pushed it.
PENDING = text("""
SELECT count(*) FILTER (WHERE ours) AS pending,
       count(*) FILTER (WHERE NOT ours) AS pending_others,
       count(*) FILTER (WHERE ours AND created_at < now() - make_interval(secs => :late)) AS late,
       COALESCE(EXTRACT(epoch FROM now() - min(created_at) FILTER (WHERE ours)), 0)::float8 AS oldest
  FROM (SELECT r.created_at,
               :every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[]))
                   OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS ours
          FROM workflow_runs AS r WHERE r.status = 'pending') AS p
""")

# Whether the views are there, and this role may read them: nothing depends on them.
MAY_SEE_OTHERS = text("""
SELECT COALESCE(bool_and(has_table_privilege(to_regclass(v.name), 'SELECT')), false)
  FROM (VALUES ('orcheo_dispatch.unclaimed_runs'), ('orcheo_dispatch.begun_elsewhere')) AS v(name)
 WHERE to_regclass(v.name) IS NOT NULL
HAVING count(*) = 2
""")
# Pending runs that no dispatcher will claim, and runs that no worker of ours began. The views say which.
OTHERS = text("""
SELECT (SELECT count(*) FROM orcheo_dispatch.unclaimed_runs) AS unclaimed,
       (SELECT count(*) FROM orcheo_dispatch.begun_elsewhere) AS begun_elsewhere
""")

# Likewise of the view of what is isolated.
MAY_SEE_ISOLATED = text(
    "SELECT COALESCE(has_table_privilege(to_regclass('orcheo_dispatch.isolated_workflows'), 'SELECT'), false)"
)
ISOLATED_COUNT = text("SELECT count(*) FROM orcheo_dispatch.isolated_workflows")
ISOLATED = text("""
SELECT workflow_id, workflow_version_id, reason, by, since, until, last_seen_at, times
  FROM orcheo_dispatch.isolated_workflows
 ORDER BY COALESCE(last_seen_at, since) DESC, workflow_id, workflow_version_id LIMIT :limit
""")

DISPATCH = text("""
SELECT count(*) FILTER (WHERE state = 'claimed') AS claimed,
       count(*) FILTER (WHERE state = 'published') AS published,
       count(*) FILTER (WHERE state = 'running') AS running,
       count(*) FILTER (WHERE state = 'running' AND lease_expires_at < now()) AS stuck
  FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published', 'running')
""")

SLOTS_DUE = text("SELECT count(*) FROM orcheo_dispatch.dispatch WHERE slot = 'due'")

_PROCESSES = text("""
SELECT kind, id::text AS id, host, pid, version, concurrency, running, started_at,
       EXTRACT(epoch FROM now() - seen_at)::float8 AS seen_ago
  FROM orcheo_dispatch.process
 WHERE seen_at > now() - make_interval(secs => :alive)
 ORDER BY kind, host, started_at LIMIT 10000
""")

# How long no Beat has been seen; nothing where none ever was, or not for a day: then its row is pruned.
BEAT_SILENT = text("""
SELECT EXTRACT(epoch FROM now() - max(seen_at))::float8 FROM orcheo_dispatch.process WHERE kind = 'beat'
""")


@dataclass(frozen=True, slots=True)
class Others:
    """How many runs are not executed by our workers."""

    unclaimed: int
    begun_elsewhere: int


def read_others(connection: Connection) -> Others | None:
    """Return them, or None where the views are missing or this role may not read them."""
    if not connection.scalar(MAY_SEE_OTHERS):
        return None
    return Others(**connection.execute(OTHERS).mappings().one())


def read_isolated(connection: Connection) -> tuple[int | None, list[dict[str, Any]]]:
    """Return how many workflows or versions are isolated, and the newest; None where this role may not know."""
    if not connection.scalar(MAY_SEE_ISOLATED):
        return None, []
    found = [dict(row) for row in connection.execute(ISOLATED, {"limit": ISOLATED_SHOWN}).mappings()]
    return len(found) if len(found) < ISOLATED_SHOWN else count_isolated(connection), found


def count_isolated(connection: Connection) -> int | None:
    """Return how many workflows or versions are isolated; None where this role may not know."""
    return connection.scalar(ISOLATED_COUNT) if connection.scalar(MAY_SEE_ISOLATED) else None


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process that is alive; `seen_ago` in seconds."""

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
class Status:
    """The state of the whole at one instant. Ages are seconds."""

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
    """Pending runs that no dispatcher will claim; None where the view is missing or this role may not read it."""
    begun_elsewhere: int | None
    """Runs of the last ten minutes that the API itself, or Orcheo's own worker, began; None likewise."""
    isolated: int | None
    """Workflows, or versions of them, whose runs get processes of their own; None as for `unclaimed`."""
    beat_silent_for: float | None
    """Seconds since a dispatcher took a tick of any Beat; None where there was none for a day."""
    processes: list[ProcessRow] = field(default_factory=list)
    isolated_workflows: list[Isolated] = field(default_factory=list)
    """Those that were isolated, or did harm, last."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def read_status(engine: Engine, *, triggers: tuple[str, ...], every_trigger: bool) -> Status:
    """Return the state of the whole. Raises `DatabaseError`, `SchemaError` where our schema is missing."""
    with transaction(engine) as connection:
        by_status = {row.status: row.runs for row in connection.execute(_RUNS_BY_STATUS)}
        pending = connection.execute(
            PENDING, {"late": LATE_SECONDS, "triggers": list(triggers), "every_trigger": every_trigger}
        ).one()
        dispatch = connection.execute(DISPATCH).one()
        slots_due = connection.scalar(SLOTS_DUE)
        others = read_others(connection)
        isolated, isolated_workflows = read_isolated(connection)
        beat_silent_for = connection.scalar(BEAT_SILENT)
        alive = connection.execute(_PROCESSES, {"alive": ALIVE_SECONDS})
        processes = [ProcessRow(**row) for row in alive.mappings()]
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
        processes=processes,
        isolated_workflows=[Isolated(**row) for row in isolated_workflows],
    )
