"""Queries of the status page for runs that wait: for their next attempt, for an answer, or for nothing any more.

They only read tables and views that `migrate` of this release creates: the page is shown without them beforehand. As in
`overview`, the cost of each is bounded, and all durations are in seconds.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

# Whether `migrate` of this release has created these, and this role may read them.
MAY_SEE_WAITING = text("""
SELECT bool_and(COALESCE(has_table_privilege(to_regclass(v.name), 'SELECT'), false))
  FROM (VALUES ('orcheo_dispatch.retry'), ('orcheo_dispatch.question'), ('orcheo_dispatch.retrying_runs'),
               ('orcheo_dispatch.waiting_runs')) AS v(name)
""")

# `of` is how many there are: the views list at most 10,000.
RETRYING = text("""
SELECT run_id, count(*) OVER () AS of FROM orcheo_dispatch.retrying_runs ORDER BY next_at LIMIT :limit
""")
WAITING = text("""
SELECT run_id, count(*) OVER () AS of FROM orcheo_dispatch.waiting_runs ORDER BY asked_at LIMIT :limit
""")

# As the view dead_runs, which reads on until it has found 10,000: this one looks at the newest 1,000 failed runs alone.
# OFFSET 0 keeps it from reading all runs that ever failed by the index on status.
DEAD = text("""
WITH failed AS MATERIALIZED (
    SELECT run_id, settled_at
      FROM (SELECT run_id, outcome, settled_at FROM orcheo_dispatch.dispatch
             WHERE state = 'settled' AND settled_at > now() - interval '1 day'
             ORDER BY settled_at DESC LIMIT :newest) AS newest
     WHERE outcome IN ('failed', 'timed_out', 'lost')
     ORDER BY settled_at DESC LIMIT 1000
)
SELECT f.run_id, count(*) OVER () AS of
  FROM failed AS f
 CROSS JOIN LATERAL (
    SELECT r.status, (SELECT t.next_at FROM orcheo_dispatch.retry AS t WHERE t.run_id = r.id) AS next_at
      FROM workflow_runs AS r WHERE r.id = f.run_id OFFSET 0) AS run
 WHERE run.status = 'failed' AND run.next_at IS NULL
 ORDER BY f.settled_at DESC LIMIT :limit
""")

# What a run waits for that no worker holds.
WAITS = text("""
SELECT r.id AS run_id, COALESCE(t.retries, 0) AS retries,
       CASE WHEN r.status = 'failed' THEN t.next_at END AS next_attempt_at,
       CASE WHEN r.status = 'failed' THEN EXTRACT(epoch FROM t.next_at - now())::float8 END AS next_attempt_in,
       CASE WHEN r.status = 'running' THEN q.interrupts END AS interrupts,
       CASE WHEN r.status = 'running' THEN EXTRACT(epoch FROM now() - q.asked_at)::float8 END AS waiting_for
  FROM workflow_runs AS r
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = r.id
  LEFT JOIN orcheo_dispatch.question AS q ON q.run_id = r.id
 WHERE r.id = ANY (CAST(:run_ids AS text[]))
""")


def may_see_waiting(connection: Connection) -> bool:
    """Return whether the tables and views exist and this role may read them."""
    return bool(connection.scalar(MAY_SEE_WAITING))
