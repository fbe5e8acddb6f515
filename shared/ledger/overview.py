"""Queries of the status page. They only read, and the cost of each is bounded: it does not grow with the history.

None of them reads a run's payload, which holds inputs, outputs and error texts. All durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, TextClause, text

from orcheo_dispatch.shared.ledger.statements import waits
from orcheo_dispatch.shared.ledger.statements.waits import may_see_waiting

NEWEST = 20_000
"""Number of newest ended runs that filters are applied to."""
HOUR_ROWS = 250_000
"""Maximum number of ended runs, the newest, that the figures of the last hour are computed from."""
SAMPLED = 10_000
"""Approximate number of these runs, evenly sampled, that percentiles of times are computed from."""

# One row per minute without gaps, oldest first, and one row for the whole hour, whose minute is NULL. The hour begins
# within a minute. `wait` is the time from the creation of a run to its last begin, `ran` from that begin to its end.
HOUR = text("""
WITH ended AS MATERIALIZED (
    SELECT run_id, outcome, begun_at, settled_at, row_number() OVER () AS n
      FROM (SELECT run_id, outcome, begun_at, settled_at FROM orcheo_dispatch.dispatch
             WHERE state = 'settled' AND settled_at > now() - interval '1 hour'
             ORDER BY settled_at DESC LIMIT :hour_rows) AS newest
     WHERE outcome IN ('succeeded', 'failed', 'timed_out', 'lost', 'cancelled')
), counted AS (
    SELECT date_trunc('minute', settled_at) AS minute,
           count(*) FILTER (WHERE outcome = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE outcome IN ('failed', 'timed_out', 'lost')) AS failed,
           count(*) FILTER (WHERE outcome = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE outcome = 'lost') AS lost
      FROM ended GROUP BY GROUPING SETS ((date_trunc('minute', settled_at)), ())
), timed AS (
    SELECT date_trunc('minute', e.settled_at) AS minute,
           percentile_cont(ARRAY[0.5, 0.95])
               WITHIN GROUP (ORDER BY EXTRACT(epoch FROM e.begun_at - r.created_at)::float8) AS wait,
           percentile_cont(ARRAY[0.5, 0.95])
               WITHIN GROUP (ORDER BY EXTRACT(epoch FROM e.settled_at - e.begun_at)::float8) AS ran
      FROM ended AS e JOIN workflow_runs AS r ON r.id = e.run_id
     WHERE e.begun_at IS NOT NULL
       AND e.n % greatest(1, (SELECT count(*) FROM ended) / :sampled) = 0
     GROUP BY GROUPING SETS ((date_trunc('minute', e.settled_at)), ())
), minutes AS (
    SELECT generate_series(date_trunc('minute', now()) - interval '59 minutes', date_trunc('minute', now()),
                           interval '1 minute') AS minute
     UNION ALL SELECT NULL
)
SELECT m.minute, COALESCE(c.succeeded, 0) AS succeeded, COALESCE(c.failed, 0) AS failed,
       COALESCE(c.cancelled, 0) AS cancelled, COALESCE(c.lost, 0) AS lost,
       t.wait[1] AS wait_p50, t.wait[2] AS wait_p95, t.ran[1] AS ran_p50, t.ran[2] AS ran_p95
  FROM minutes AS m
  LEFT JOIN counted AS c ON c.minute IS NOT DISTINCT FROM m.minute
  LEFT JOIN timed AS t ON t.minute IS NOT DISTINCT FROM m.minute
 ORDER BY m.minute
""")

# The runs to show. Each part stops after :limit rows of an index. A run that was released or requeued is pending again.
RUNS = text("""
WITH pending AS (
    SELECT run_id FROM orcheo_dispatch.all_pending_runs
     WHERE ours AND :with_pending
       AND (CAST(:workflow AS text) IS NULL OR workflow_id = :workflow)
     ORDER BY created_at DESC, run_id DESC LIMIT :limit
), live AS (
    SELECT run_id FROM orcheo_dispatch.live_runs
     WHERE ((state = 'running' AND :with_running) OR (state <> 'running' AND :with_pending))
       AND (CAST(:workflow AS text) IS NULL OR workflow_id = :workflow)
     ORDER BY claimed_at DESC LIMIT :limit
), ended AS (
    SELECT run_id
      FROM (SELECT run_id, workflow_id, outcome, settled_at FROM orcheo_dispatch.dispatch
             WHERE state = 'settled' ORDER BY settled_at DESC LIMIT :newest) AS newest
     WHERE outcome = ANY (CAST(:outcomes AS text[]))
       AND (CAST(:workflow AS text) IS NULL OR workflow_id = :workflow)
     ORDER BY settled_at DESC LIMIT :limit
)
SELECT run_id FROM pending UNION SELECT run_id FROM live UNION SELECT run_id FROM ended
""")
STUCK = text("SELECT run_id FROM orcheo_dispatch.stuck_runs ORDER BY overdue_seconds DESC LIMIT :limit")
LOST = text("""
SELECT run_id
  FROM (SELECT run_id, outcome, settled_at FROM orcheo_dispatch.dispatch
         WHERE state = 'settled' AND settled_at > now() - interval '1 day'
         ORDER BY settled_at DESC LIMIT :newest) AS newest
 WHERE outcome = 'lost'
 ORDER BY settled_at DESC LIMIT :limit
""")

# Columns shown for a run. `reason` is shown only if it is 'by hand' or a name, such as that of a class of errors.
ROWS = text("""
WITH rows AS (
    SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.status, r.triggered_by, r.created_at, d.state, d.attempts,
           d.begun_at, COALESCE(l.stuck, false) AS stuck, d.heartbeat_at, d.worker_id::text AS worker_id,
           CASE WHEN r.status NOT IN ('pending', 'running') THEN d.settled_at END AS ended_at,
           CASE WHEN r.status NOT IN ('pending', 'running') THEN d.outcome END AS outcome,
           CASE WHEN d.reason ~ '^[A-Za-z_][A-Za-z0-9_.]{0,79}$' OR d.reason = 'by hand' THEN d.reason END AS reason
      FROM workflow_runs AS r
      LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
      LEFT JOIN orcheo_dispatch.live_runs AS l ON l.run_id = r.id
     WHERE r.id = ANY (CAST(:run_ids AS text[]))
)
SELECT run_id, workflow_id, workspace_id, status, triggered_by, created_at, state, outcome, attempts, reason, worker_id,
       stuck,
       EXTRACT(epoch FROM now() - created_at)::float8 AS created_ago,
       EXTRACT(epoch FROM now() - COALESCE(ended_at, CASE WHEN state = 'running' THEN begun_at END, created_at))::float8
           AS changed_ago,
       EXTRACT(epoch FROM CASE WHEN status = 'pending' THEN now() ELSE COALESCE(begun_at, ended_at, now()) END
                          - created_at)::float8 AS waited,
       CASE WHEN status <> 'pending' THEN EXTRACT(epoch FROM COALESCE(ended_at, now()) - begun_at)::float8 END AS ran,
       CASE WHEN state = 'running' THEN EXTRACT(epoch FROM now() - heartbeat_at)::float8 END AS silent_for
  FROM rows
 ORDER BY changed_ago, run_id
 LIMIT :limit
""")

# The workflows that the filter offers.
WORKFLOWS = text("""
SELECT workflow_id
  FROM (SELECT workflow_id FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published', 'running')
         UNION ALL
        (SELECT workflow_id FROM orcheo_dispatch.dispatch WHERE state = 'settled'
          ORDER BY settled_at DESC LIMIT :newest)) AS newest
 GROUP BY workflow_id ORDER BY count(*) DESC, workflow_id LIMIT :limit
""")

# Recently seen processes, alive or not, so that missing ones are shown too.
PROCESSES = text("""
SELECT kind, id::text AS id, host, pid, version, concurrency, running,
       EXTRACT(epoch FROM now() - started_at)::float8 AS up_for, seen_seconds_ago AS seen_ago, alive
  FROM orcheo_dispatch.processes
 WHERE seen_at > now() - make_interval(secs => :missing)
 ORDER BY kind, alive DESC, host, started_at, id
 LIMIT :limit
""")

# The views may be missing: this release's `migrate` creates them.
MAY_SEE_OPERATORS = text("""
SELECT COALESCE(has_table_privilege(to_regclass('orcheo_dispatch.policies'), 'SELECT')
                AND has_table_privilege(to_regclass('orcheo_dispatch.operations'), 'SELECT'), false)
""")

# Policies that say something now, wider scopes first.
IN_FORCE = text("""
SELECT scope, workspace_id, workflow_id, maintenance, paused,
       EXTRACT(epoch FROM paused_until - now())::float8 AS paused_for, priority, max_running, rate_runs, rate_seconds,
       queue, timeout_seconds, lost_runs, retries, isolation, why, by, EXTRACT(epoch FROM now() - at)::float8 AS ago
  FROM orcheo_dispatch.policies
 WHERE num_nonnulls(maintenance, paused, priority, max_running, rate_runs, queue, timeout_seconds, lost_runs, retries,
                    isolation) > 0
 ORDER BY workflow_id IS NOT NULL, workspace_id IS NOT NULL, at DESC, workspace_id, workflow_id
 LIMIT :limit
""")

# Orcheo's own table. A dispatcher's role may lack the right to read it; in that case ids are shown instead of names.
# Null where there is no such table.
MAY_NAME = text("""
SELECT has_column_privilege(to_regclass('workflows'), 'id', 'SELECT')
           AND has_column_privilege(to_regclass('workflows'), 'handle', 'SELECT') AS handle,
       has_column_privilege(to_regclass('workflows'), 'payload', 'SELECT') AS name
""")
_HANDLES = text("SELECT id, handle AS name FROM workflows WHERE id = ANY (CAST(:ids AS text[]))")
_NAMES = text("""
SELECT id, COALESCE(payload ->> 'name', handle) AS name FROM workflows WHERE id = ANY (CAST(:ids AS text[]))
""")


_WAITS_UNKNOWN = dict.fromkeys(("retries", "next_attempt_at", "next_attempt_in", "interrupts", "waiting_for"))


class Shown(StrEnum):
    """Statuses by which runs can be filtered: those of the API."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_OUTCOMES: dict[Shown, tuple[str, ...]] = {
    Shown.SUCCEEDED: ("succeeded",),
    Shown.FAILED: ("failed", "timed_out", "lost"),
    Shown.CANCELLED: ("cancelled", "skipped"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs to show: those of one status, of one workflow, or of any."""

    status: Shown | None = None
    workflow: str | None = None


def runs_of(connection: Connection, wanted: Wanted, *, limit: int) -> list[dict[str, Any]]:
    """Return runs, most recently begun, ended or created first."""
    status = wanted.status
    chosen = [outcome for each, outcomes in _OUTCOMES.items() if status in (None, each) for outcome in outcomes]
    return shown(
        connection,
        RUNS,
        limit=limit,
        newest=NEWEST,
        with_pending=status in (None, Shown.PENDING),
        with_running=status in (None, Shown.RUNNING),
        outcomes=chosen,
        workflow=wanted.workflow,
    )


def names_of(connection: Connection, workflows: Sequence[str]) -> dict[str, str]:
    """Return the names of these workflows, as far as this role may read them."""
    may = connection.execute(MAY_NAME).one()
    if not workflows or not may.handle:
        return {}
    rows = connection.execute(_NAMES if may.name else _HANDLES, {"ids": list(workflows)})
    return {row.id: row.name[:120] for row in rows if row.name}


def counted(connection: Connection, choice: TextClause, **parameters: Any) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of runs that a statement finds, and what the page shows of its first rows, in their order."""
    chosen = rows_of(connection, choice, **parameters)
    run_ids = [row["run_id"] for row in chosen]
    rows = _rows(connection, run_ids, limit=len(run_ids))
    return chosen[0]["of"] if chosen else 0, sorted(rows, key=lambda row: run_ids.index(row["run_id"]))


def shown(connection: Connection, choice: TextClause, *, limit: int, **parameters: Any) -> list[dict[str, Any]]:
    """Return what the page shows of the runs that a statement chooses; at most `limit`."""
    return _rows(connection, connection.scalars(choice, {**parameters, "limit": limit}).all(), limit=limit)


def _rows(connection: Connection, run_ids: Sequence[str], *, limit: int) -> list[dict[str, Any]]:
    if not run_ids:
        return []
    rows = rows_of(connection, ROWS, run_ids=list(run_ids), limit=limit)
    ids = [row["run_id"] for row in rows]
    found = rows_of(connection, waits.WAITS, run_ids=ids) if may_see_waiting(connection) else []
    of_run = {row["run_id"]: row for row in found}
    return [{**_WAITS_UNKNOWN, **row, **of_run.get(row["run_id"], {})} for row in rows]


def rows_of(connection: Connection, statement: TextClause, **parameters: Any) -> list[dict[str, Any]]:
    """Return the rows of a statement, one mapping per row."""
    return [dict(row) for row in connection.execute(statement, parameters).mappings()]
