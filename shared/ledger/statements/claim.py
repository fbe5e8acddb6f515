"""Claim runs: choose which runs a dispatcher takes, and enter them into the ledger.

Workspaces take turns; within a workspace, workflows take turns; within a workflow, the oldest run is first. What
operators decided (`orcheo_dispatch.policy`) is read by this statement, and so in force at the next claim. The other two
ways to claim are in `claim_oldest`. With :choose, the runs are only locked and their ids returned: if Postgres refuses
a claim as a whole, `CLAIM_GIVEN` claims smaller and smaller parts of these runs in the same transaction, so that the
limits hold.
"""

from sqlalchemy import text

# Looks at :keys keys at most. :workspaces and :workflows are NULL, or the keys that had more runs than their share.
CLAIM = text("""
WITH RECURSIVE workspaces (workspace, lap, place) AS (
    -- Workspaces with pending runs, :keys of them at most, starting after the one that was served last and wrapping
    -- around. Each is found by one descent of the index on turns ("loose index scan", PostgreSQL wiki).
    -- Conditions are row comparisons and ordered by all columns, so that no other index can serve them. An index on
    -- the workflow alone would read all of its ended runs.
    SELECT CAST(:after_workspace AS text), 0, 0 WHERE CAST(:workspaces AS text[]) IS NULL
     UNION ALL
    SELECT n.workspace, n.lap, t.place + 1
      FROM workspaces AS t CROSS JOIN LATERAL (
           (SELECT COALESCE(r.workspace_id, '') AS workspace, t.lap FROM workflow_runs AS r
             WHERE r.status = 'pending' AND COALESCE(r.workspace_id, '') > t.workspace
             ORDER BY COALESCE(r.workspace_id, '') LIMIT 1)
            UNION ALL
           (SELECT COALESCE(r.workspace_id, ''), 1 FROM workflow_runs AS r
             WHERE r.status = 'pending' AND t.lap = 0
             ORDER BY COALESCE(r.workspace_id, '') LIMIT 1)
            LIMIT 1) AS n
     WHERE t.place < :keys AND (n.lap = 0 OR n.workspace <= :after_workspace)
), keys AS MATERIALIZED (
    -- A key is a pair of workspace and workflow; the workspace is '' for runs without one, as in the index on turns.
    -- Keys are found in turn, unless the caller gives those that had more runs than their share.
    SELECT w.workspace, w.place, f.workflow, f.place AS place_in_workspace
      FROM (SELECT workspace, place, count(*) OVER () AS workspaces FROM workspaces WHERE place > 0) AS w
      LEFT JOIN unnest(CAST(:workspaces_begun AS text[]), CAST(:after_workflows AS text[])) AS b(workspace, workflow)
        ON b.workspace = w.workspace
     CROSS JOIN LATERAL (
        WITH RECURSIVE workflows (workflow, lap, place) AS (
            SELECT COALESCE(b.workflow, ''), 0, 0
             UNION ALL
            SELECT n.workflow, n.lap, t.place + 1
              FROM workflows AS t CROSS JOIN LATERAL (
                   (SELECT r.workflow_id AS workflow, t.lap FROM workflow_runs AS r
                     WHERE r.status = 'pending' AND COALESCE(r.workspace_id, '') <= w.workspace
                       AND (COALESCE(r.workspace_id, ''), r.workflow_id) > (w.workspace, t.workflow)
                     ORDER BY COALESCE(r.workspace_id, ''), r.workflow_id LIMIT 1)
                    UNION ALL
                   (SELECT r.workflow_id, 1 FROM workflow_runs AS r
                     WHERE r.status = 'pending' AND t.lap = 0 AND COALESCE(r.workspace_id, '') <= w.workspace
                       AND (COALESCE(r.workspace_id, ''), r.workflow_id) >= (w.workspace, '')
                     ORDER BY COALESCE(r.workspace_id, ''), r.workflow_id LIMIT 1)
                    LIMIT 1) AS n
             WHERE t.place < GREATEST(1, :keys / w.workspaces)
               AND (n.lap = 0 OR n.workflow <= COALESCE(b.workflow, ''))
        )
        SELECT workflow, place FROM workflows WHERE place > 0) AS f
     UNION ALL
    SELECT k.workspace, dense_rank() OVER (ORDER BY k.workspace), k.workflow,
           row_number() OVER (PARTITION BY k.workspace ORDER BY k.workflow)
      FROM unnest(CAST(:workspaces AS text[]), CAST(:workflows AS text[])) AS k(workspace, workflow)
), ruled AS MATERIALIZED (
    -- What operators decided for each key: the workflow first, then the workspace, then all runs. Limits do not replace
    -- each other: each holds for the runs of its scope together. Each row is found by the primary key (OFFSET 0).
    SELECT k.workspace, k.place, k.workflow, k.place_in_workspace,
           COALESCE(f.paused, w.paused, a.paused, false) AS paused,
           NULLIF(COALESCE(f.queue, w.queue, a.queue), 'default') AS queue,
           power(2, COALESCE(f.priority, 0)) AS weight, power(2, COALESCE(w.priority, 0)) AS weight_of_workspace,
           COALESCE(f.max_running, :per_workflow) AS per_workflow, f.rate_runs AS rate_of_workflow,
           CASE WHEN k.workspace <> '' THEN COALESCE(w.max_running, :per_workspace) END AS per_workspace,
           w.rate_runs AS rate_of_workspace
      FROM keys AS k
      LEFT JOIN LATERAL (
        SELECT orcheo_dispatch.paused_now(p.paused, p.paused_until) AS paused, p.queue, p.priority, p.max_running,
               p.rate_runs
          FROM orcheo_dispatch.policy AS p
         WHERE p.workspace_id = '' AND p.workflow_id = k.workflow OFFSET 0) AS f ON true
      LEFT JOIN LATERAL (
        SELECT orcheo_dispatch.paused_now(p.paused, p.paused_until) AS paused, p.queue, p.priority, p.max_running,
               p.rate_runs
          FROM orcheo_dispatch.policy AS p
         WHERE p.workspace_id = k.workspace AND p.workflow_id = '' AND k.workspace <> '' OFFSET 0) AS w ON true
      LEFT JOIN (
        SELECT orcheo_dispatch.paused_now(p.paused, p.paused_until) AS paused, p.queue
          FROM orcheo_dispatch.policy AS p WHERE p.workspace_id = '' AND p.workflow_id = '') AS a ON true
), live AS MATERIALIZED (
    -- Runs that count against the limits, if any is set.
    SELECT COALESCE(d.workspace_id, '') AS workspace, d.workflow_id AS workflow, count(*) AS runs
      FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running')
       AND (CAST(:per_workflow AS integer) IS NOT NULL OR CAST(:per_workspace AS integer) IS NOT NULL
            OR EXISTS (SELECT FROM orcheo_dispatch.policy AS p WHERE p.max_running IS NOT NULL))
     GROUP BY 1, 2
), named_queues AS MATERIALIZED (
    -- Room in each named queue that a live worker consumes (:consumed). Runs of other queues stay in the table. The
    -- list of processes is not read here: claims must not wait for a lock on it.
    SELECT n.queue,
           GREATEST(0, :max_queued - (SELECT count(*) FROM orcheo_dispatch.dispatch AS d
                                       WHERE d.state IN ('claimed', 'published') AND d.queue = n.queue)) AS room
      FROM (SELECT DISTINCT r.queue FROM ruled AS r) AS n
     WHERE n.queue = ANY (CAST(:consumed AS text[]))
), room AS MATERIALIZED (
    -- Room for all runs together: none during maintenance.
    SELECT CASE WHEN a.maintenance THEN 0
                ELSE GREATEST(0, LEAST(:room, a.max_running - CASE WHEN a.max_running IS NOT NULL THEN (
                                                  SELECT COALESCE(sum(l.runs), 0)::bigint FROM live AS l) END,
                                       a.rate_runs - CASE WHEN a.rate_runs IS NOT NULL THEN (
                                           SELECT COALESCE(sum(u.runs), 0)::bigint FROM orcheo_dispatch.rate_use AS u
                                            WHERE u.workspace_id = '' AND u.workflow_id = '' AND u.until > now()) END))
                END AS runs
      FROM (SELECT 1) AS one
      LEFT JOIN orcheo_dispatch.policy AS a ON a.workspace_id = '' AND a.workflow_id = ''
), allowed AS MATERIALIZED (
    -- How many more runs the limits allow. A workflow with runs in two workspaces has one turn at a time, so that its
    -- limit holds.
    SELECT r.workspace, r.place, r.workflow, r.place_in_workspace, r.queue, r.weight, r.weight_of_workspace,
           CASE WHEN r.paused THEN 0
                WHEN (r.per_workflow IS NOT NULL OR r.rate_of_workflow IS NOT NULL)
                     AND row_number() OVER (PARTITION BY r.workflow ORDER BY r.place) > 1 THEN 0
                ELSE GREATEST(0, LEAST(
                    :room, CASE WHEN r.queue IS NULL THEN :default_room ELSE COALESCE(q.room, 0) END,
                    r.per_workflow - CASE WHEN r.per_workflow IS NOT NULL THEN COALESCE((
                        SELECT sum(l.runs)::bigint FROM live AS l WHERE l.workflow = r.workflow), 0) END,
                    r.rate_of_workflow - CASE WHEN r.rate_of_workflow IS NOT NULL THEN COALESCE((
                        SELECT sum(u.runs)::bigint FROM orcheo_dispatch.rate_use AS u
                         WHERE u.workspace_id = '' AND u.workflow_id = r.workflow AND u.until > now()), 0) END))
                END AS of_workflow,
           GREATEST(0, LEAST(
               :room,
               r.per_workspace - CASE WHEN r.per_workspace IS NOT NULL THEN COALESCE((
                   SELECT sum(l.runs)::bigint FROM live AS l WHERE l.workspace = r.workspace), 0) END,
               r.rate_of_workspace - CASE WHEN r.rate_of_workspace IS NOT NULL THEN COALESCE((
                   SELECT sum(u.runs)::bigint FROM orcheo_dispatch.rate_use AS u
                    WHERE u.workspace_id = r.workspace AND u.workflow_id = '' AND u.until > now()), 0) END))
               AS of_workspace
      FROM ruled AS r LEFT JOIN named_queues AS q ON q.queue = r.queue
), shares AS MATERIALIZED (
    -- The room is divided into shares, first by workspace, then by workflow: evenly, or by their priorities. A share is
    -- at least one, whatever the priority, but never more than the limits allow. Who cannot run now has no share.
    SELECT a.workspace, a.place, a.workflow, a.place_in_workspace, a.queue, s.of_workspace,
           LEAST(a.of_workflow, ceil(s.of_workspace * a.weight / n.weight))::bigint AS share, a.of_workflow
      FROM allowed AS a
      LEFT JOIN (SELECT workspace, sum(weight) AS weight, max(weight_of_workspace) AS weight_of_workspace,
                        sum(max(weight_of_workspace)) OVER () AS weight_of_all
                   FROM allowed WHERE of_workflow > 0 AND of_workspace > 0 GROUP BY workspace) AS n
        ON n.workspace = a.workspace
     CROSS JOIN room
     CROSS JOIN LATERAL (
        SELECT COALESCE(LEAST(a.of_workspace, ceil(room.runs * n.weight_of_workspace / n.weight_of_all)::bigint), 0)
                   AS of_workspace) AS s
), candidates AS MATERIALIZED (
    -- A pending run is ours if its label is on the allow-list, or the allow-list is '*', and it is not ChatKit's; or
    -- if it has a row in the ledger, because it was claimed before, or admitted after the API pushed it.
    --
    -- Claimed runs stay pending until they begin, at the head of their key. They are skipped by a hash of their ids,
    -- which is built once per statement and small enough for any work_mem. The ledger rows of the other runs are
    -- looked up one by one by the primary key. The lookup is a scalar subquery, because a NOT EXISTS may become a join
    -- with all live rows if the statistics know of none. It is behind OFFSET 0, so that it is executed once, for both
    -- the condition and the result. If there is no row, the label decides.
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, c.created_at, c.in_ledger, c.queue
      FROM (SELECT DISTINCT workspace, place, of_workspace FROM shares ORDER BY place) AS w
     CROSS JOIN LATERAL (
        SELECT x.id, x.workflow_id, x.workspace_id, x.triggered_by, x.created_at, x.in_ledger, s.queue
          FROM (SELECT * FROM shares WHERE workspace = w.workspace ORDER BY place_in_workspace) AS s
         CROSS JOIN LATERAL (
            SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at, d.state IS NOT NULL AS in_ledger
              FROM workflow_runs AS r
             CROSS JOIN LATERAL (
                SELECT (SELECT l.state FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = r.id) AS state
                OFFSET 0) AS d
             WHERE r.status = 'pending'
               AND (COALESCE(r.workspace_id, ''), r.workflow_id) >= (s.workspace, s.workflow)
               AND (COALESCE(r.workspace_id, ''), r.workflow_id) <= (s.workspace, s.workflow)
               AND r.id NOT IN (SELECT q.run_id FROM orcheo_dispatch.dispatch AS q
                                 WHERE q.state IN ('claimed', 'published') LIMIT 10000)
               AND NOT r.id IN (SELECT unnest(CAST(:skipped AS text[])))
               AND COALESCE(d.state,
                            CASE WHEN (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                                      AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                                 THEN 'settled' ELSE 'not ours' END)
                   NOT IN ('claimed', 'published', 'running', 'not ours')
             ORDER BY COALESCE(r.workspace_id, ''), r.workflow_id, r.created_at, r.id
             LIMIT s.share
               FOR UPDATE OF r SKIP LOCKED) AS x
         LIMIT w.of_workspace) AS c
     LIMIT (SELECT room.runs FROM room)
), free_row AS MATERIALIZED (
    -- Ledger rows that another session has locked are skipped. The insert would wait for them, and delay all claims.
    SELECT d.run_id
      FROM candidates AS c
     CROSS JOIN LATERAL (
        SELECT l.run_id FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = c.id FOR UPDATE SKIP LOCKED) AS d
     WHERE c.in_ledger
), claimed AS (
    -- SKIP LOCKED skips runs that another dispatcher has locked right now, but does not check again a run that another
    -- one locked, entered into the ledger and unlocked, unchanged, since the snapshot of this statement. For these the
    -- conflict clause decides: it takes over only a settled row.
    --
    -- A fence is the number of milliseconds since the epoch, times 1024; the last ten bits are the number of the
    -- claim of this run, as far as the ledger knows. So it is higher than every earlier fence of the run, even if its
    -- row was pruned or the tables were restored to an earlier state.
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot, claimed_at, lease_expires_at,
            dispatcher_id, created_at, queue)
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed',
           ((EXTRACT(epoch FROM now()) * 1000)::bigint << 10) + 1,
           CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
           now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid), c.created_at, c.queue
      FROM candidates AS c
     WHERE NOT :choose AND (NOT c.in_ledger OR c.id IN (SELECT f.run_id FROM free_row AS f))
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'claimed', outcome = NULL, claimed_at = now(), published_at = NULL,
           fence = GREATEST(d.fence + 1, EXCLUDED.fence + LEAST(d.fence & 1023, 1022)),
           begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
           dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL,
           created_at = EXCLUDED.created_at, queue = EXCLUDED.queue
     WHERE d.state = 'settled'
    RETURNING d.run_id, d.fence
)
-- One row per key, with its claims, oldest first, and whether it has more than its share.
SELECT s.place, s.place_in_workspace, s.workspace, s.workflow, s.queue,
       count(c.id) AS found, count(c.id) = s.share AND s.share > 0 AND s.share < s.of_workflow AS has_more,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS fences,
       COALESCE(array_agg(c.id ORDER BY c.created_at, c.id) FILTER (WHERE :choose AND c.id IS NOT NULL), '{}')
           AS chosen_ids,
       COALESCE(array_agg(c.id) FILTER (WHERE c.in_ledger AND NOT c.id IN (SELECT f.run_id FROM free_row AS f)), '{}')
           AS held_ids
  FROM shares AS s
  LEFT JOIN candidates AS c ON COALESCE(c.workspace_id, '') = s.workspace AND c.workflow_id = s.workflow
  LEFT JOIN claimed AS n ON n.run_id = c.id
 GROUP BY s.place, s.place_in_workspace, s.workspace, s.workflow, s.queue, s.share, s.of_workflow
 ORDER BY s.place, s.place_in_workspace
""")

# Taken before a claim with limits, so that one dispatcher claims at a time. This is a separate statement because, under
# READ COMMITTED, each statement has its own snapshot: one that was taken before the wait for the lock would not show
# what the other dispatcher claimed.
LIMITED_CLAIMS_LOCK = text("SELECT pg_advisory_xact_lock(205392148)")
