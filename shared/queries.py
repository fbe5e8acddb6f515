"""What operators ask of the database. Only reads; each statement can be pasted into psql."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, text

from shared.database import transaction

LATE_SECONDS = 300
"""The promise: no pending run is older than five minutes."""
ALIVE_SECONDS = 30

_RUNS_BY_STATUS = text("SELECT status, count(*) AS runs FROM workflow_runs GROUP BY status ORDER BY status")

# Runs that nobody asked us to dispatch (of ChatKit, say) are counted apart: they are not late, they are not ours.
PENDING = text("""
SELECT count(*) FILTER (WHERE ours) AS pending,
       count(*) FILTER (WHERE NOT ours) AS pending_others,
       count(*) FILTER (WHERE ours AND created_at < now() - make_interval(secs => :late)) AS late,
       COALESCE(EXTRACT(epoch FROM now() - min(created_at) FILTER (WHERE ours)), 0)::float8 AS oldest
  FROM (SELECT created_at, :every_trigger OR triggered_by = ANY (CAST(:triggers AS text[])) AS ours
          FROM workflow_runs WHERE status = 'pending') AS p
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
 ORDER BY kind, host, started_at
""")

# How long no Beat has been seen; nothing where none ever was, or not for a day: then its row is pruned.
BEAT_SILENT = text("""
SELECT EXTRACT(epoch FROM now() - max(seen_at))::float8 FROM orcheo_dispatch.process WHERE kind = 'beat'
""")


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
    beat_silent_for: float | None
    """Seconds since a dispatcher took a tick of any Beat; None where there was none for a day."""
    processes: list[ProcessRow] = field(default_factory=list)

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
        beat_silent_for=beat_silent_for,
        processes=processes,
    )
