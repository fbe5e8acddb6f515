"""A run under execution: begun, kept alive, settled."""

from sqlalchemy import text

# Begin a run: ledger row and run move together. A message with another fence, or one that has been
# answered before, finds no row. A run that is not pending any more is settled as what the API made of it.
BEGIN = text("""
WITH locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
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
      FROM (SELECT 1) AS always LEFT JOIN locked_run AS l ON true
     WHERE d.run_id = :run_id AND d.fence = :fence AND d.state IN ('claimed', 'published')
    RETURNING d.run_id, d.state, d.reason, d.attempts, d.slot, d.workspace_id, d.claimed_at
), begun AS (
    UPDATE workflow_runs AS r
       SET status = 'running', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'running', 'run_started', :actor, '{}',
                                           jsonb_build_object('started_at', orcheo_dispatch.iso(now())))
      FROM answered AS a
     WHERE r.id = a.run_id AND a.state = 'running' AND r.status = 'pending'
    RETURNING r.id, r.workflow_id, r.workflow_version_id, r.triggered_by,
              EXTRACT(EPOCH FROM a.claimed_at - r.created_at)::float8 AS pending_for,
              EXTRACT(EPOCH FROM now() - a.claimed_at)::float8 AS queued_for,
              r.payload -> 'input_payload' AS inputs, r.payload -> 'runnable_config' AS runnable_config
)
SELECT a.state, a.reason, a.attempts, a.slot, a.workspace_id,
       b.workflow_id, b.workflow_version_id, b.triggered_by, b.pending_for, b.queued_for,
       b.inputs, b.runnable_config
  FROM answered AS a LEFT JOIN begun AS b ON b.id = a.run_id
""")

# Extend the leases of the runs that this worker executes, in one statement, and learn what the API made of them.
# A run that is not returned is not this worker's any more.
HEARTBEAT = text("""
UPDATE orcheo_dispatch.dispatch AS d
   SET heartbeat_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
  FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS h(run_id, fence)
  LEFT JOIN workflow_runs AS r ON r.id = h.run_id
 WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state = 'running'
RETURNING d.run_id, d.fence, r.status
""")

# End a run under its fence. Where the API has ended it meanwhile, its word stands and only the ledger is settled.
# :status 'pending' hands the run back for another attempt.
SETTLE = text("""
WITH locked_run AS MATERIALIZED (
    SELECT r.id, r.status FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = :reason,
           outcome = CASE WHEN l.status = 'running' THEN :outcome
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND COALESCE(l.status, 'cancelled') <> 'pending'
                        AND NOT (l.status = 'running' AND :status = 'pending') THEN 'due' ELSE d.slot END
      FROM (SELECT 1) AS always LEFT JOIN locked_run AS l ON true
     WHERE d.run_id = :run_id AND d.fence = :fence AND d.state = 'running'
    RETURNING d.run_id, d.outcome, d.slot, d.workspace_id
), ended AS (
    UPDATE workflow_runs AS r
       SET status = :status, updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, :status, :action, :actor, CAST(:metadata AS jsonb),
               CAST(:changes AS jsonb) || CASE WHEN :status = 'pending'
                   THEN jsonb_build_object('started_at', NULL)
                   ELSE jsonb_build_object('completed_at', orcheo_dispatch.iso(now())) END)
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status = 'running'
    RETURNING r.id
)
SELECT s.outcome, s.slot, s.workspace_id, e.id IS NOT NULL AS ended
  FROM settled AS s LEFT JOIN ended AS e ON e.id = s.run_id
""")
