"""Runs under execution: begun, kept alive, settled; each statement takes any number of them."""

from sqlalchemy import text

# Begin runs: ledger row and run move together. A message with another fence, or one that has been answered before,
# finds no row. A run that is not pending any more is settled as what the API made of it.
#
# `|| ''` keeps the planner off the indexes by status and by state. By its statistics hardly a row is running or
# claimed, so it would compare each of those with each of ours; the keys lead to ours alone.
#
# Every statement that locks several rows locks them in the order of their ids, runs before rows of the ledger:
# so no two of them can wait for each other.
BEGIN = text("""
WITH message AS MATERIALIZED (
    SELECT m.run_id, m.fence FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
), locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) ORDER BY r.id FOR UPDATE
), locked_row AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      -- Not before the runs are locked.
      JOIN (SELECT count(*) FROM locked_run) AS locked ON true
     WHERE d.run_id = ANY (CAST(:run_ids AS text[])) AND d.state || '' IN ('claimed', 'published')
     ORDER BY d.run_id FOR UPDATE OF d
), answered AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = CASE WHEN l.status = 'pending' THEN 'running' ELSE 'settled' END,
           outcome = CASE WHEN l.status = 'pending' THEN NULL
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           settled_at = CASE WHEN l.status = 'pending' THEN NULL ELSE now() END,
           reason = CASE WHEN l.status = 'pending' THEN NULL ELSE 'run is ' || COALESCE(l.status, 'gone') END,
           slot = CASE WHEN COALESCE(l.status, 'cancelled') IN ('cancelled', 'failed', 'succeeded') AND d.slot = 'held'
                       THEN 'due' ELSE d.slot END,
           begun_at = CASE WHEN l.status = 'pending' THEN now() END,
           heartbeat_at = CASE WHEN l.status = 'pending' THEN now() END,
           lease_expires_at = CASE WHEN l.status = 'pending' THEN now() + make_interval(secs => :lease) END,
           attempts = d.attempts + CASE WHEN l.status = 'pending' THEN 1 ELSE 0 END,
           worker_id = CAST(:worker_id AS uuid)
      FROM message AS m
      JOIN locked_row AS k ON k.run_id = m.run_id AND k.fence = m.fence
      LEFT JOIN locked_run AS l ON l.id = m.run_id
     WHERE d.run_id = m.run_id AND d.fence = m.fence AND d.state || '' IN ('claimed', 'published')
    RETURNING d.run_id, d.fence, d.state, d.reason, d.attempts, d.slot, d.workspace_id, d.claimed_at
), begun AS (
    UPDATE workflow_runs AS r
       SET status = 'running', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'running', 'run_started', :actor, '{}',
                                           jsonb_build_object('started_at', orcheo_dispatch.iso(now())))
      FROM answered AS a
     WHERE r.id = a.run_id AND a.state = 'running' AND r.status || '' = 'pending'
    RETURNING r.id, r.workflow_id, r.workflow_version_id, r.triggered_by,
              EXTRACT(EPOCH FROM a.claimed_at - r.created_at)::float8 AS pending_for,
              EXTRACT(EPOCH FROM now() - a.claimed_at)::float8 AS queued_for,
              r.payload -> 'input_payload' AS inputs, r.payload -> 'runnable_config' AS runnable_config,
              a.fence, a.state, a.attempts, a.slot, a.workspace_id
)
SELECT b.id AS run_id, b.fence, b.state, NULL AS reason, b.attempts, b.slot, b.workspace_id,
       b.workflow_id, b.workflow_version_id, b.triggered_by, b.pending_for, b.queued_for, b.inputs, b.runnable_config
  FROM begun AS b
 UNION ALL
SELECT a.run_id, a.fence, a.state, a.reason, a.attempts, a.slot, a.workspace_id,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM answered AS a WHERE a.state <> 'running'
""")

# Which of these runs the ledger has heard of.
KNOWN = text("SELECT d.run_id FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = ANY (CAST(:run_ids AS text[]))")

# Extend the leases of the runs that this worker executes, in one statement, and learn what the API made of them.
# A run that is not returned is not this worker's any more. Its id is compared as well: after a restore of Redis too, a
# message may be delivered twice, to two workers under one fence.
HEARTBEAT = text("""
WITH held AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS h(run_id, fence)
        ON h.run_id = d.run_id AND h.fence = d.fence
     WHERE d.state || '' = 'running'
       AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
     ORDER BY d.run_id FOR UPDATE OF d
)
UPDATE orcheo_dispatch.dispatch AS d
   SET heartbeat_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
  FROM held AS h
  LEFT JOIN workflow_runs AS r ON r.id = h.run_id
 WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state || '' = 'running'
RETURNING d.run_id, d.fence, r.status
""")

# End runs, each under its fence. Where the API has ended one meanwhile, its word stands and only the ledger is settled.
# A status 'pending' hands the run back for another attempt. Of another worker's runs none is touched.
SETTLE = text("""
WITH ending AS MATERIALIZED (
    SELECT e.* FROM unnest(
        CAST(:run_ids AS text[]), CAST(:fences AS bigint[]), CAST(:outcomes AS text[]), CAST(:statuses AS text[]),
        CAST(:actions AS text[]), CAST(:reasons AS text[]), CAST(:metadata AS jsonb[]), CAST(:changes AS jsonb[])
    ) AS e(run_id, fence, outcome, status, action, reason, metadata, changes)
), locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) ORDER BY r.id FOR UPDATE
), locked_row AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      JOIN (SELECT count(*) FROM locked_run) AS locked ON true
     WHERE d.run_id = ANY (CAST(:run_ids AS text[])) AND d.state || '' = 'running'
       AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
     ORDER BY d.run_id FOR UPDATE OF d
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = e.reason,
           outcome = CASE WHEN l.status = 'running' THEN e.outcome
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND COALESCE(l.status, 'cancelled') <> 'pending'
                        AND NOT (l.status = 'running' AND e.status = 'pending') THEN 'due' ELSE d.slot END
      FROM ending AS e
      JOIN locked_row AS k ON k.run_id = e.run_id AND k.fence = e.fence
      LEFT JOIN locked_run AS l ON l.id = e.run_id
     WHERE d.run_id = e.run_id AND d.fence = e.fence AND d.state || '' = 'running'
    RETURNING d.run_id, d.fence, d.outcome, d.slot, d.workspace_id, e.status, e.action, e.metadata, e.changes
), ended AS (
    UPDATE workflow_runs AS r
       SET status = s.status, updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, s.status, s.action, :actor, s.metadata,
               s.changes || CASE WHEN s.status = 'pending'
                   THEN jsonb_build_object('started_at', NULL)
                   ELSE jsonb_build_object('completed_at', orcheo_dispatch.iso(now())) END)
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status || '' = 'running'
    RETURNING r.id
)
SELECT s.run_id, s.fence, s.outcome, s.slot, s.workspace_id, s.run_id IN (SELECT e.id FROM ended AS e) AS ended
  FROM settled AS s
""")
