"""Claim runs: choose which runs a dispatcher takes, and enter them into the ledger.

Workspaces take turns; within a workspace, workflows take turns; within a workflow, the oldest run is first. All three
statements lock the runs and enter them into the ledger. With :choose, two of them only lock the runs and return their
ids: if Postgres refuses a claim as a whole, `CLAIM_GIVEN` claims smaller and smaller parts of these runs in the same
transaction, so that the limits hold.
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
), live AS MATERIALIZED (
    -- Runs that count against the limits, if any is set.
    SELECT COALESCE(d.workspace_id, '') AS workspace, d.workflow_id AS workflow, count(*) AS runs
      FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running')
       AND (CAST(:per_workflow AS integer) IS NOT NULL OR CAST(:per_workspace AS integer) IS NOT NULL)
     GROUP BY 1, 2
), allowed AS MATERIALIZED (
    -- How many more runs the limits allow. A workflow with runs in two workspaces has one turn at a time, so that its
    -- limit holds.
    SELECT k.workspace, k.place, k.workflow, k.place_in_workspace,
           CASE WHEN CAST(:per_workflow AS integer) IS NULL THEN CAST(:room AS bigint)
                WHEN row_number() OVER (PARTITION BY k.workflow ORDER BY k.place) > 1 THEN 0
                ELSE GREATEST(0, :per_workflow - COALESCE((SELECT sum(l.runs)::bigint FROM live AS l
                                                            WHERE l.workflow = k.workflow), 0)) END AS of_workflow,
           CASE WHEN CAST(:per_workspace AS integer) IS NULL OR k.workspace = '' THEN CAST(:room AS bigint)
                ELSE GREATEST(0, :per_workspace - COALESCE((SELECT sum(l.runs)::bigint FROM live AS l
                                                             WHERE l.workspace = k.workspace), 0)) END AS of_workspace
      FROM keys AS k
), shares AS MATERIALIZED (
    -- The room is divided evenly into shares, first by workspace, then by workflow. A share is at least one, but never
    -- more than the limits allow.
    SELECT a.workspace, a.place, a.workflow, a.place_in_workspace, s.of_workspace,
           LEAST(a.of_workflow, (s.of_workspace + n.workflows - 1) / n.workflows)::bigint AS share,
           a.of_workflow
      FROM allowed AS a
      JOIN (SELECT workspace, count(*) AS workflows, count(*) OVER () AS workspaces
              FROM allowed GROUP BY workspace) AS n ON n.workspace = a.workspace
     CROSS JOIN LATERAL (
        SELECT LEAST(a.of_workspace, (:room + n.workspaces - 1) / n.workspaces) AS of_workspace) AS s
), candidates AS MATERIALIZED (
    -- A pending run is ours if its label is on the allow-list, or the allow-list is '*', and it is not ChatKit's; or
    -- if it has a row in the ledger, because it was claimed before, or admitted after the API pushed it.
    --
    -- Claimed runs stay pending until they begin, at the head of their key. They are skipped by a hash of their ids,
    -- which is built once per statement and small enough for any work_mem. The ledger rows of the other runs are
    -- looked up one by one by the primary key. The lookup is a scalar subquery, because a NOT EXISTS may become a join
    -- with all live rows if the statistics know of none. It is behind OFFSET 0, so that it is executed once, for both
    -- the condition and the result. If there is no row, the label decides.
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, c.created_at, c.in_ledger
      FROM (SELECT DISTINCT workspace, place, of_workspace FROM shares ORDER BY place) AS w
     CROSS JOIN LATERAL (
        SELECT x.id, x.workflow_id, x.workspace_id, x.triggered_by, x.created_at, x.in_ledger
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
     LIMIT :room
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
            dispatcher_id, created_at)
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed',
           ((EXTRACT(epoch FROM now()) * 1000)::bigint << 10) + 1,
           CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
           now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid), c.created_at
      FROM candidates AS c
     WHERE NOT :choose AND (NOT c.in_ledger OR c.id IN (SELECT f.run_id FROM free_row AS f))
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'claimed', outcome = NULL, claimed_at = now(), published_at = NULL,
           fence = GREATEST(d.fence + 1, EXCLUDED.fence + LEAST(d.fence & 1023, 1022)),
           begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
           dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL,
           created_at = EXCLUDED.created_at
     WHERE d.state = 'settled'
    RETURNING d.run_id, d.fence
)
-- One row per key, with its claims, oldest first, and whether it has more than its share.
SELECT s.place, s.place_in_workspace, s.workspace, s.workflow,
       count(c.id) AS found, count(c.id) = s.share AND s.share > 0 AND s.share < s.of_workflow AS has_more,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS fences,
       COALESCE(array_agg(c.id ORDER BY c.created_at, c.id) FILTER (WHERE :choose), '{}') AS chosen_ids,
       COALESCE(array_agg(c.id) FILTER (WHERE c.in_ledger AND NOT c.id IN (SELECT f.run_id FROM free_row AS f)), '{}')
           AS held_ids
  FROM shares AS s
  LEFT JOIN candidates AS c ON COALESCE(c.workspace_id, '') = s.workspace AND c.workflow_id = s.workflow
  LEFT JOIN claimed AS n ON n.run_id = c.id
 GROUP BY s.place, s.place_in_workspace, s.workspace, s.workflow, s.share, s.of_workflow
 ORDER BY s.place, s.place_in_workspace
""")

# Claim the oldest runs across all workspaces. Does not need the index on turns.
CLAIM_OLDEST_FIRST = text("""
WITH live AS MATERIALIZED (
    -- Runs that count against the limits, if any is set.
    SELECT COALESCE(d.workspace_id, '') AS workspace, d.workflow_id AS workflow, count(*) AS runs
      FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running')
       AND (CAST(:per_workflow AS integer) IS NOT NULL OR CAST(:per_workspace AS integer) IS NOT NULL)
     GROUP BY 1, 2
), oldest AS MATERIALIZED (
    -- Workflows and workspaces that have reached their limits are skipped.
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
           COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS in_ledger
      FROM workflow_runs AS r
     WHERE r.status = 'pending' AND NOT r.id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND COALESCE((SELECT d.state FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id),
                    CASE WHEN (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                              AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                         THEN 'settled' ELSE 'not ours' END)
                   NOT IN ('claimed', 'published', 'running', 'not ours')
       AND r.workflow_id <> ALL (ARRAY(SELECT l.workflow FROM live AS l
                                        GROUP BY l.workflow HAVING sum(l.runs) >= :per_workflow))
       AND (r.workspace_id IS NULL OR r.workspace_id <> ALL (ARRAY(SELECT l.workspace FROM live AS l
                                        GROUP BY l.workspace HAVING sum(l.runs) >= :per_workspace)))
     ORDER BY r.created_at, r.id
     LIMIT :room
       FOR UPDATE OF r SKIP LOCKED
), candidates AS MATERIALIZED (
    -- Runs that are locked but exceed a limit are dropped.
    SELECT o.*
      FROM (SELECT o.*, row_number() OVER (PARTITION BY o.workflow_id ORDER BY o.created_at, o.id)
                        + COALESCE((SELECT sum(l.runs) FROM live AS l WHERE l.workflow = o.workflow_id), 0)
                            AS of_workflow,
                   row_number() OVER (PARTITION BY o.workspace_id ORDER BY o.created_at, o.id)
                        + COALESCE((SELECT sum(l.runs) FROM live AS l WHERE l.workspace = o.workspace_id), 0)
                            AS of_workspace
              FROM oldest AS o) AS o
     WHERE (CAST(:per_workflow AS integer) IS NULL OR o.of_workflow <= :per_workflow)
       AND (CAST(:per_workspace AS integer) IS NULL OR o.workspace_id IS NULL OR o.of_workspace <= :per_workspace)
     ORDER BY o.created_at, o.id
), free_row AS MATERIALIZED (
    -- Ledger rows that another session has locked are skipped. The insert would wait for them, and delay all claims.
    SELECT d.run_id
      FROM candidates AS c
     CROSS JOIN LATERAL (
        SELECT l.run_id FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = c.id FOR UPDATE SKIP LOCKED) AS d
     WHERE c.in_ledger
), claimed AS (
    -- As in CLAIM.
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot, claimed_at, lease_expires_at,
            dispatcher_id, created_at)
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed',
           ((EXTRACT(epoch FROM now()) * 1000)::bigint << 10) + 1,
           CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
           now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid), c.created_at
      FROM candidates AS c
     WHERE NOT :choose AND (NOT c.in_ledger OR c.id IN (SELECT f.run_id FROM free_row AS f))
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'claimed', outcome = NULL, claimed_at = now(), published_at = NULL,
           fence = GREATEST(d.fence + 1, EXCLUDED.fence + LEAST(d.fence & 1023, 1022)),
           begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
           dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL,
           created_at = EXCLUDED.created_at
     WHERE d.state = 'settled'
    RETURNING d.run_id, d.fence
)
SELECT (SELECT count(*) FROM oldest) AS found,
       (SELECT count(*) FROM candidates) AS within_limits,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id), '{}') AS fences,
       ARRAY(SELECT h.id FROM candidates AS h WHERE :choose ORDER BY h.created_at, h.id) AS chosen_ids,
       ARRAY(SELECT h.id FROM candidates AS h WHERE h.in_ledger AND NOT h.id IN (SELECT f.run_id FROM free_row AS f))
           AS held_ids
  FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id
""")

# Claim some of the runs that one of the statements above has chosen and locked.
CLAIM_GIVEN = text("""
WITH candidates AS MATERIALIZED (
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
           COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS in_ledger
      FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) AND r.status || '' = 'pending'
     ORDER BY r.created_at, r.id
       FOR UPDATE OF r SKIP LOCKED
), free_row AS MATERIALIZED (
    -- Ledger rows that another session has locked are skipped. The insert would wait for them, and delay all claims.
    SELECT d.run_id
      FROM candidates AS c
     CROSS JOIN LATERAL (
        SELECT l.run_id FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = c.id FOR UPDATE SKIP LOCKED) AS d
     WHERE c.in_ledger
), claimed AS (
    -- As in CLAIM.
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot, claimed_at, lease_expires_at,
            dispatcher_id, created_at)
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed',
           ((EXTRACT(epoch FROM now()) * 1000)::bigint << 10) + 1,
           CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
           now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid), c.created_at
      FROM candidates AS c
     WHERE NOT c.in_ledger OR c.id IN (SELECT f.run_id FROM free_row AS f)
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'claimed', outcome = NULL, claimed_at = now(), published_at = NULL,
           fence = GREATEST(d.fence + 1, EXCLUDED.fence + LEAST(d.fence & 1023, 1022)),
           begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
           dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL,
           created_at = EXCLUDED.created_at
     WHERE d.state = 'settled'
    RETURNING d.run_id, d.fence
)
SELECT n.run_id, n.fence FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id ORDER BY c.created_at, c.id
""")

# Taken before a claim with limits, so that one dispatcher claims at a time. This is a separate statement because, under
# READ COMMITTED, each statement has its own snapshot: one that was taken before the wait for the lock would not show
# what the other dispatcher claimed.
LIMITED_CLAIMS_LOCK = text("SELECT pg_advisory_xact_lock(205392148)")
