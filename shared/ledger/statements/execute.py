"""Begin, keep alive and settle runs; each statement takes any number of them."""

from sqlalchemy import text

# Begin runs: the ledger row and the run change together. A message with another fence, or one that has been answered
# before, finds no row. A run that is no longer pending is settled with the outcome that the API gave it.
#
# A run that must not be executed is cancelled here, so that no executor ever sees it: one that has no workspace, one
# whose workspace is not the one that its payload names or that owns its workflow, and one whose workflow is archived or
# was deleted. A workflow without an owner belongs to all workspaces, as in Orcheo; each of its runs belongs to one.
#
# The claim of a run that an operator has paused meanwhile is released: it stays pending. What else operators decided
# for a run is returned with it.
#
# `|| ''` prevents the planner from using the indexes on status and state. According to its statistics, hardly any row
# is running or claimed, so it would compare each of those rows with each of ours; the keys lead to ours directly.
#
# Begin, heartbeat and settle skip rows that another session has locked, and report them: a locked row delays only its
# own run. The other rows are locked in the order of their ids, runs before ledger rows.
BEGIN = text("""
WITH message AS MATERIALIZED (
    SELECT m.run_id, m.fence FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
), locked_run AS MATERIALIZED (
    SELECT r.id, r.status, r.workspace_id, r.workflow_id, r.payload ->> 'workspace_id' AS payload_workspace_id,
           -- Another worker that executed it, such as Orcheo's own, has returned its slot.
           r.status || '' IN ('succeeded', 'failed')
               AND r.payload @? '$.audit_log[*] ? (@.action == "run_started" && @.actor == "worker")'
               AS executed
      FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) ORDER BY r.id FOR UPDATE SKIP LOCKED
), verdict AS MATERIALIZED (
    SELECT l.id, l.status, l.executed,
           CASE WHEN l.status <> 'pending' THEN NULL
                WHEN l.workspace_id IS NULL THEN 'workspace_missing'
                WHEN l.payload_workspace_id <> l.workspace_id THEN 'workspace_ambiguous'
                WHEN w.id IS NULL THEN 'workflow_unavailable'
                WHEN w.workspace_id <> l.workspace_id THEN 'workspace_foreign'
                WHEN w.is_archived THEN 'workflow_archived' END AS rejected,
           CASE WHEN EXISTS (SELECT FROM orcheo_dispatch.policy)
                THEN orcheo_dispatch.policy_of(l.workspace_id, l.workflow_id) END AS policy
      FROM locked_run AS l LEFT JOIN workflows AS w ON w.id = l.workflow_id
), free AS MATERIALIZED (
    SELECT l.id FROM locked_run AS l
     UNION ALL
    -- Deleted runs. A run that exists and was not locked here is locked by another session.
    SELECT m.run_id FROM message AS m
     WHERE m.run_id NOT IN (SELECT l.id FROM locked_run AS l)
       AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = m.run_id)
), locked_row AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
     WHERE d.run_id = ANY (ARRAY(SELECT f.id FROM free AS f)) AND d.state || '' IN ('claimed', 'published')
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
), answer AS MATERIALIZED (
    SELECT k.run_id, k.fence, v.status = 'pending' AND v.rejected IS NULL AND v.policy ->> 'held' IS NULL AS begins,
           v.status, v.rejected, COALESCE(v.executed, false) AS executed, v.policy,
           CASE WHEN v.status = 'pending' AND v.rejected IS NULL THEN v.policy ->> 'held' END AS held
      FROM message AS m
      JOIN locked_row AS k ON k.run_id = m.run_id AND k.fence = m.fence
      LEFT JOIN verdict AS v ON v.id = m.run_id
), answered AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = CASE WHEN a.begins THEN 'running' ELSE 'settled' END,
           outcome = CASE WHEN a.begins THEN NULL
                          WHEN a.held IS NOT NULL THEN 'released'
                          WHEN a.rejected IS NOT NULL OR a.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           settled_at = CASE WHEN a.begins THEN NULL ELSE now() END,
           reason = CASE WHEN a.begins THEN NULL
                         ELSE COALESCE(a.rejected, a.held, 'run is ' || COALESCE(a.status, 'gone')) END,
           slot = CASE WHEN d.slot <> 'held' THEN d.slot
                       WHEN a.executed AND d.attempts = 0 THEN 'returned'
                       WHEN a.rejected IS NOT NULL
                            OR COALESCE(a.status, 'cancelled') IN ('cancelled', 'failed', 'succeeded') THEN 'due'
                       ELSE d.slot END,
           begun_at = CASE WHEN a.begins THEN now() END,
           heartbeat_at = CASE WHEN a.begins THEN now() END,
           lease_expires_at = CASE WHEN a.begins THEN now() + make_interval(secs => :lease) END,
           attempts = d.attempts + CASE WHEN a.begins THEN 1 ELSE 0 END,
           worker_id = CAST(:worker_id AS uuid)
      FROM answer AS a
     WHERE d.run_id = a.run_id AND d.fence = a.fence AND d.state || '' IN ('claimed', 'published')
    RETURNING d.run_id, d.fence, d.state, d.reason, d.slot, d.workspace_id, d.claimed_at, a.rejected, a.policy,
              d.suspect,
              -- A refunded attempt does not count, but the number is at least 1.
              GREATEST(d.attempts - d.refunded, 1) AS attempts, d.attempts = 1 AS first
), begun AS (
    UPDATE workflow_runs AS r
       SET status = 'running', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'running', 'run_started', :actor, '{}',
                                           jsonb_build_object('started_at', orcheo_dispatch.iso(now())))
      FROM answered AS a
     WHERE r.id = a.run_id AND a.state = 'running' AND r.status || '' = 'pending'
    RETURNING r.id, r.workflow_id, r.workflow_version_id, r.triggered_by,
              CASE WHEN isfinite(r.created_at) THEN EXTRACT(EPOCH FROM a.claimed_at - r.created_at)::float8
                   ELSE 0 END AS pending_for,
              EXTRACT(EPOCH FROM now() - a.claimed_at)::float8 AS queued_for,
              -- As text: a value that Python cannot read must not prevent the other runs from beginning.
              (r.payload -> 'input_payload')::text AS inputs, (r.payload -> 'runnable_config')::text AS runnable_config,
              a.fence, a.state, a.attempts, a.slot, a.workspace_id, a.suspect, a.first, a.policy
), rejected AS (
    UPDATE workflow_runs AS r
       SET status = 'cancelled', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'cancelled', 'run_cancelled', :actor,
                                           jsonb_build_object('reason', why.reason),
                                           jsonb_build_object('error', why.reason,
                                                              'completed_at', orcheo_dispatch.iso(now())))
      FROM answered AS a
      JOIN (VALUES ('workspace_missing', 'Run has no workspace.'),
                   ('workspace_ambiguous', 'Run names two workspaces.'),
                   ('workspace_foreign', 'Workflow is archived or unavailable.'),
                   ('workflow_unavailable', 'Workflow is archived or unavailable.'),
                   ('workflow_archived', 'Workflow is archived.')) AS why(rejected, reason)
        ON why.rejected = a.rejected
     WHERE r.id = a.run_id AND a.state = 'settled' AND r.status || '' = 'pending'
)
SELECT b.id AS run_id, b.fence, b.state, NULL AS reason, false AS rejected, b.attempts, b.slot, b.workspace_id,
       b.workflow_id, b.workflow_version_id, b.triggered_by, b.pending_for, b.queued_for, b.inputs, b.runnable_config,
       b.suspect, b.first, b.policy::text AS policy
  FROM begun AS b
 UNION ALL
SELECT a.run_id, a.fence, a.state, a.reason, a.rejected IS NOT NULL, a.attempts, a.slot, a.workspace_id,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.suspect, a.first, NULL
  FROM answered AS a WHERE a.state <> 'running'
 UNION ALL
SELECT d.run_id, d.fence, 'locked', NULL, false, d.attempts, d.slot, d.workspace_id,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, d.suspect, false, NULL
  FROM message AS m JOIN orcheo_dispatch.dispatch AS d ON d.run_id = m.run_id AND d.fence = m.fence
 WHERE d.run_id = ANY (ARRAY(SELECT m.run_id FROM message AS m
                              WHERE m.run_id NOT IN (SELECT a.run_id FROM answered AS a)))
   AND d.state || '' IN ('claimed', 'published')
""")

# The runs among these that this worker has begun. Used if the answer to a begin was lost.
#
# Extends their leases before any of them is executed, because a write waits for the synchronous standby. A former
# primary whose standby has been promoted, without the begin, would still answer a statement that only reads.
BEGUN = text("""
WITH message AS MATERIALIZED (
    SELECT m.run_id, m.fence FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
), held AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      JOIN message AS m ON m.run_id = d.run_id AND m.fence = d.fence
     WHERE d.run_id = ANY (CAST(:run_ids AS text[])) AND d.state || '' = 'running'
       AND d.worker_id = CAST(:worker_id AS uuid)
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
), extended AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET heartbeat_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
      FROM held AS h
     WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state || '' = 'running'
    RETURNING d.run_id, d.fence, GREATEST(d.attempts - d.refunded, 1) AS attempts, d.slot, d.workspace_id, d.claimed_at,
              d.begun_at, d.suspect, d.attempts = 1 AS first
)
SELECT x.run_id, x.fence, 'running' AS state, NULL AS reason, false AS rejected, x.attempts, x.slot, x.workspace_id,
       r.workflow_id, r.workflow_version_id, r.triggered_by,
       CASE WHEN isfinite(r.created_at) THEN EXTRACT(EPOCH FROM x.claimed_at - r.created_at)::float8
            ELSE 0 END AS pending_for,
       EXTRACT(EPOCH FROM x.begun_at - x.claimed_at)::float8 AS queued_for,
       (r.payload -> 'input_payload')::text AS inputs, (r.payload -> 'runnable_config')::text AS runnable_config,
       x.suspect, x.first,
       CASE WHEN EXISTS (SELECT FROM orcheo_dispatch.policy)
            THEN orcheo_dispatch.policy_of(x.workspace_id, r.workflow_id)::text END AS policy
  FROM extended AS x JOIN workflow_runs AS r ON r.id = x.run_id
 UNION ALL
SELECT d.run_id, d.fence, 'locked', NULL, false, d.attempts, d.slot, d.workspace_id,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, d.suspect, false, NULL
  FROM message AS m JOIN orcheo_dispatch.dispatch AS d ON d.run_id = m.run_id AND d.fence = m.fence
 WHERE d.run_id = ANY (ARRAY(SELECT m.run_id FROM message AS m
                              WHERE m.run_id NOT IN (SELECT x.run_id FROM extended AS x)))
   AND d.state || '' = 'running' AND d.worker_id = CAST(:worker_id AS uuid)
""")

# Fail pending runs whose begin Postgres refuses: they could never be executed.
REFUSE = text("""
WITH refused AS MATERIALIZED (
    SELECT f.* FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[]), CAST(:errors AS text[]))
        AS f(run_id, fence, error)
), locked_run AS MATERIALIZED (
    SELECT r.id FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) AND r.status || '' = 'pending' ORDER BY r.id FOR UPDATE SKIP LOCKED
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', outcome = 'failed', settled_at = now(), lease_expires_at = NULL, reason = 'begin_refused',
           slot = CASE WHEN d.slot = 'held' THEN 'due' ELSE d.slot END, worker_id = CAST(:worker_id AS uuid)
      FROM refused AS f JOIN locked_run AS l ON l.id = f.run_id
     WHERE d.run_id = f.run_id AND d.fence = f.fence AND d.state || '' IN ('claimed', 'published')
    RETURNING d.run_id, d.fence, d.slot, d.workspace_id, f.error
), failed AS (
    UPDATE workflow_runs AS r
       SET status = 'failed', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'failed', 'run_failed', :actor,
                                           jsonb_build_object('error', s.error),
                                           jsonb_build_object('error', s.error,
                                                              'completed_at', orcheo_dispatch.iso(now())))
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status || '' = 'pending'
)
SELECT s.run_id, s.fence, s.slot, s.workspace_id FROM settled AS s
""")

# The runs among these that have a row in the ledger.
KNOWN = text("SELECT d.run_id FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = ANY (CAST(:run_ids AS text[]))")

# Extend the leases of the runs that this worker executes. Touches only the ledger, so that no lock on the API's table,
# such as that of a migration, costs a lease. Rows that another session has locked are skipped and returned as not
# renewed. A run that is not returned no longer belongs to this worker. The worker's id is compared as well, because a
# message may be delivered twice, for example after a restore of Redis: to two workers with the same fence.
#
# A skipped row counts as held, so this answer too must wait for the synchronous standby: a former primary whose standby
# has been promoted must not give it. A transaction that writes nothing does not wait, so for each skipped row a message
# that nothing reads is written to the WAL. If no row is skipped, nothing is written in addition.
HEARTBEAT = text("""
WITH mine AS MATERIALIZED (
    SELECT m.run_id, m.fence FROM unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
), held AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
      JOIN mine AS m ON m.run_id = d.run_id AND m.fence = d.fence
     WHERE d.run_id = ANY (CAST(:run_ids AS text[])) AND d.state || '' = 'running'
       AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
), renewed AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET heartbeat_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
      FROM held AS h
     WHERE d.run_id = h.run_id AND d.fence = h.fence AND d.state || '' = 'running'
    RETURNING d.run_id, d.fence
)
SELECT n.run_id, n.fence, true AS renewed FROM renewed AS n
 UNION ALL
SELECT d.run_id, d.fence, pg_logical_emit_message(true, 'orcheo_dispatch', 'lease held') IS NULL
  FROM mine AS m JOIN orcheo_dispatch.dispatch AS d ON d.run_id = m.run_id AND d.fence = m.fence
 WHERE d.run_id = ANY (ARRAY(SELECT m.run_id FROM mine AS m
                              WHERE m.run_id NOT IN (SELECT n.run_id FROM renewed AS n)))
   AND d.state || '' = 'running'
   AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
""")

# The runs among these that this worker executes and that the API has ended or deleted meanwhile.
ENDED_BY_API = text("""
SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
  JOIN unnest(CAST(:run_ids AS text[]), CAST(:fences AS bigint[])) AS m(run_id, fence)
    ON m.run_id = d.run_id AND m.fence = d.fence
  LEFT JOIN workflow_runs AS r ON r.id = d.run_id
 WHERE d.state || '' = 'running' AND r.status IS DISTINCT FROM 'running'
   AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
""")

# End runs, each under its fence. If the API has ended one meanwhile, its status stays and only the ledger is settled.
# Status 'pending' returns the run for another attempt, 'running' has it wait for a person's answer. Runs of other
# workers are never touched.
SETTLE = text("""
WITH ending AS MATERIALIZED (
    SELECT e.* FROM unnest(
        CAST(:run_ids AS text[]), CAST(:fences AS bigint[]), CAST(:outcomes AS text[]), CAST(:statuses AS text[]),
        CAST(:actions AS text[]), CAST(:reasons AS text[]), CAST(:metadata AS jsonb[]), CAST(:changes AS jsonb[]),
        CAST(:refunds AS boolean[]), CAST(:suspects AS boolean[]), CAST(:retries AS boolean[]),
        CAST(:checkpoints AS text[]), CAST(:interrupts AS integer[]), CAST(:keeps_slot AS boolean[])
    ) AS e(run_id, fence, outcome, status, action, reason, metadata, changes, refund, suspect, retry, checkpoint_id,
           interrupts, keeps_slot)
), locked_run AS MATERIALIZED (
    SELECT r.id, r.status, r.workflow_id FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) ORDER BY r.id FOR UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT l.id FROM locked_run AS l
     UNION ALL
    -- Deleted runs. A run that exists and was not locked here is locked by another session.
    SELECT e.run_id FROM ending AS e
     WHERE e.run_id NOT IN (SELECT l.id FROM locked_run AS l)
       AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = e.run_id)
), locked_row AS MATERIALIZED (
    SELECT d.run_id, d.fence FROM orcheo_dispatch.dispatch AS d
     WHERE d.run_id = ANY (ARRAY(SELECT f.id FROM free AS f)) AND d.state || '' = 'running'
       AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
), retry AS MATERIALIZED (
    -- Failed runs that the retry policy of their workflow allows to be tried again. They are failed until then.
    SELECT e.run_id, COALESCE(t.retries, 0) + 1 AS retries, now() + make_interval(secs => w.seconds) AS next_at
      FROM ending AS e
      JOIN locked_row AS k ON k.run_id = e.run_id AND k.fence = e.fence
      JOIN locked_run AS l ON l.id = e.run_id AND l.status = 'running'
      LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = e.run_id
     CROSS JOIN LATERAL (
        SELECT orcheo_dispatch.retry_delay(l.workflow_id, COALESCE(t.retries, 0)) AS seconds OFFSET 0) AS w
     WHERE e.retry AND w.seconds IS NOT NULL
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = e.reason,
           outcome = CASE WHEN l.status = 'running' THEN e.outcome
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND COALESCE(l.status, 'cancelled') <> 'pending'
                        AND (l.status IS DISTINCT FROM 'running' OR NOT e.keeps_slot) THEN 'due' ELSE d.slot END,
           refunded = LEAST(d.attempts, d.refunded + CASE WHEN e.refund THEN 1 ELSE 0 END),
           -- A suspect that is requeued before it has ended stays a suspect.
           suspect = e.suspect OR (d.suspect AND e.status = 'pending')
      FROM ending AS e
      JOIN locked_row AS k ON k.run_id = e.run_id AND k.fence = e.fence
      LEFT JOIN locked_run AS l ON l.id = e.run_id
      LEFT JOIN retry AS y ON y.run_id = e.run_id
     WHERE d.run_id = e.run_id AND d.fence = e.fence AND d.state || '' = 'running'
    RETURNING d.run_id, d.fence, d.outcome, d.slot, d.workspace_id, e.status, e.action, e.changes, y.retries, y.next_at,
              e.metadata || CASE WHEN y.next_at IS NULL THEN '{}'
                                 ELSE jsonb_build_object('retry', y.retries,
                                                         'retry_at', orcheo_dispatch.iso(y.next_at)) END AS metadata,
              e.checkpoint_id, e.interrupts
), scheduled AS (
    INSERT INTO orcheo_dispatch.retry AS t (run_id, retries, next_at)
    SELECT s.run_id, s.retries, s.next_at FROM settled AS s WHERE s.next_at IS NOT NULL
        ON CONFLICT (run_id) DO UPDATE
       SET retries = EXCLUDED.retries, next_at = EXCLUDED.next_at, start_over_from = NULL
), asked AS (
    INSERT INTO orcheo_dispatch.question AS q (run_id, checkpoint_id, interrupts)
    SELECT s.run_id, s.checkpoint_id, s.interrupts FROM settled AS s
     WHERE s.checkpoint_id IS NOT NULL AND s.outcome = 'requeued'
        ON CONFLICT (run_id) DO UPDATE
       SET checkpoint_id = EXCLUDED.checkpoint_id, interrupts = EXCLUDED.interrupts, asked_at = now()
), ended AS (
    UPDATE workflow_runs AS r
       SET status = s.status, updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, s.status, s.action, :actor, s.metadata,
               s.changes || CASE s.status
                   WHEN 'pending' THEN jsonb_build_object('started_at', NULL)
                   WHEN 'running' THEN '{}'
                   ELSE jsonb_build_object('completed_at', orcheo_dispatch.iso(now())) END)
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status || '' = 'running'
    RETURNING r.id
)
SELECT s.run_id, s.fence, s.outcome, s.slot, s.workspace_id, s.run_id IN (SELECT e.id FROM ended AS e) AS ended,
       orcheo_dispatch.iso(s.next_at) AS retry_at
  FROM settled AS s
 UNION ALL
-- Still ours, but another session has locked the run or its row.
SELECT d.run_id, d.fence, NULL, NULL, NULL, false, NULL
  FROM ending AS e JOIN orcheo_dispatch.dispatch AS d ON d.run_id = e.run_id AND d.fence = e.fence
 WHERE d.run_id = ANY (ARRAY(SELECT e.run_id FROM ending AS e
                              WHERE e.run_id NOT IN (SELECT s.run_id FROM settled AS s)))
   AND d.state || '' = 'running'
   AND (CAST(:worker_id AS uuid) IS NULL OR d.worker_id = CAST(:worker_id AS uuid))
""")
