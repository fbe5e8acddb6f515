"""Claim runs oldest first: while the index on turns is missing, and to take a claim apart that Postgres refuses."""

from sqlalchemy import text

# Claim the oldest runs across all workspaces. Does not need the index on turns. Priorities do not apply.
CLAIM_OLDEST_FIRST = text("""
WITH live AS MATERIALIZED (
    -- Runs that count against the limits, if any is set.
    SELECT COALESCE(d.workspace_id, '') AS workspace, d.workflow_id AS workflow, count(*) AS runs
      FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running')
       AND (CAST(:per_workflow AS integer) IS NOT NULL OR CAST(:per_workspace AS integer) IS NOT NULL
            OR EXISTS (SELECT FROM orcheo_dispatch.policy AS p WHERE p.max_running IS NOT NULL))
     GROUP BY 1, 2
), used AS MATERIALIZED (
    -- Claims that count against the rates.
    SELECT u.workspace_id AS workspace, u.workflow_id AS workflow, sum(u.runs)::bigint AS runs
      FROM orcheo_dispatch.rate_use AS u WHERE u.until > now() GROUP BY 1, 2
), named_queues AS MATERIALIZED (
    -- As in CLAIM.
    SELECT n.queue,
           GREATEST(0, :max_queued - (SELECT count(*) FROM orcheo_dispatch.dispatch AS d
                                       WHERE d.state IN ('claimed', 'published') AND d.queue = n.queue)) AS room
      FROM (SELECT DISTINCT p.queue FROM orcheo_dispatch.policy AS p WHERE p.queue <> 'default') AS n
     WHERE n.queue = ANY (CAST(:consumed AS text[]))
), every AS MATERIALIZED (
    -- The policy of all runs.
    SELECT orcheo_dispatch.paused_now(a.paused, a.paused_until) AS paused, a.queue,
           CASE WHEN a.maintenance THEN 0
                ELSE GREATEST(0, LEAST(:room, a.max_running - (SELECT COALESCE(sum(l.runs), 0)::bigint FROM live AS l),
                                       a.rate_runs - COALESCE((SELECT u.runs FROM used AS u
                                                                WHERE u.workspace = '' AND u.workflow = ''), 0)))
                END AS room
      FROM (SELECT 1) AS one
      LEFT JOIN orcheo_dispatch.policy AS a ON a.workspace_id = '' AND a.workflow_id = ''
), closed AS MATERIALIZED (
    -- Workflows and workspaces that have reached a limit of their own.
    SELECT p.workspace_id AS workspace, p.workflow_id AS workflow,
           COALESCE(p.max_running <= COALESCE((
               SELECT sum(l.runs) FROM live AS l
                WHERE l.workflow = p.workflow_id OR (p.workflow_id = '' AND l.workspace = p.workspace_id)), 0), false)
           OR COALESCE(p.rate_runs <= (SELECT u.runs FROM used AS u
                                        WHERE u.workspace = p.workspace_id AND u.workflow = p.workflow_id), false)
               AS exhausted
      FROM orcheo_dispatch.policy AS p
), oldest AS MATERIALIZED (
    -- Workflows and workspaces that are paused, or have reached their limits, are skipped.
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
           NULLIF(COALESCE(f.queue, w.queue, every.queue), 'default') AS queue,
           COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS in_ledger
      FROM workflow_runs AS r
     CROSS JOIN every
      LEFT JOIN orcheo_dispatch.policy AS f ON f.workspace_id = '' AND f.workflow_id = r.workflow_id
      LEFT JOIN orcheo_dispatch.policy AS w ON w.workspace_id = r.workspace_id AND w.workflow_id = ''
     WHERE r.status = 'pending' AND NOT r.id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND COALESCE((SELECT d.state FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id),
                    CASE WHEN (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                              AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                         THEN 'settled' ELSE 'not ours' END)
                   NOT IN ('claimed', 'published', 'running', 'not ours')
       AND NOT COALESCE(orcheo_dispatch.paused_now(f.paused, f.paused_until),
                        orcheo_dispatch.paused_now(w.paused, w.paused_until), every.paused, false)
       AND COALESCE((SELECT q.room FROM named_queues AS q
                      WHERE q.queue = NULLIF(COALESCE(f.queue, w.queue, every.queue), 'default')),
                    CASE WHEN COALESCE(f.queue, w.queue, every.queue, 'default') = 'default'
                         THEN CAST(:default_room AS bigint) ELSE 0 END) > 0
       AND r.workflow_id <> ALL (ARRAY(SELECT c.workflow FROM closed AS c WHERE c.workflow <> '' AND c.exhausted))
       AND (COALESCE(r.workspace_id, '') = ''
            OR r.workspace_id <> ALL (ARRAY(SELECT c.workspace FROM closed AS c
                                             WHERE c.workspace <> '' AND c.exhausted)))
       AND (f.max_running IS NOT NULL
            OR r.workflow_id <> ALL (ARRAY(SELECT l.workflow FROM live AS l
                                            GROUP BY l.workflow HAVING sum(l.runs) >= :per_workflow)))
       AND (COALESCE(r.workspace_id, '') = '' OR w.max_running IS NOT NULL
            OR r.workspace_id <> ALL (ARRAY(SELECT l.workspace FROM live AS l
                                             GROUP BY l.workspace HAVING sum(l.runs) >= :per_workspace)))
     ORDER BY r.created_at, r.id
     LIMIT (SELECT every.room FROM every)
       FOR UPDATE OF r SKIP LOCKED
), candidates AS MATERIALIZED (
    -- Runs that are locked but exceed a limit are dropped.
    SELECT o.id, o.workflow_id, o.workspace_id, o.triggered_by, o.created_at, o.queue, o.in_ledger
      FROM (SELECT o.*,
                   row_number() OVER (PARTITION BY o.workflow_id ORDER BY o.created_at, o.id) AS of_workflow,
                   row_number() OVER (PARTITION BY o.workspace_id ORDER BY o.created_at, o.id) AS of_workspace,
                   row_number() OVER (PARTITION BY o.queue ORDER BY o.created_at, o.id) AS of_queue
              FROM oldest AS o) AS o
      LEFT JOIN orcheo_dispatch.policy AS f ON f.workspace_id = '' AND f.workflow_id = o.workflow_id
      LEFT JOIN orcheo_dispatch.policy AS w ON w.workspace_id = o.workspace_id AND w.workflow_id = ''
     WHERE COALESCE(o.of_workflow + COALESCE((SELECT sum(l.runs) FROM live AS l WHERE l.workflow = o.workflow_id), 0)
                        <= COALESCE(f.max_running, :per_workflow), true)
       AND COALESCE(o.of_workspace + COALESCE((SELECT sum(l.runs) FROM live AS l WHERE l.workspace = o.workspace_id), 0)
                        <= COALESCE(w.max_running, CASE WHEN o.workspace_id <> '' THEN :per_workspace END), true)
       AND COALESCE(o.of_workflow + COALESCE((SELECT u.runs FROM used AS u
                                               WHERE u.workspace = '' AND u.workflow = o.workflow_id), 0)
                        <= f.rate_runs, true)
       AND COALESCE(o.of_workspace + COALESCE((SELECT u.runs FROM used AS u
                                                WHERE u.workspace = o.workspace_id AND u.workflow = ''), 0)
                        <= w.rate_runs, true)
       AND o.of_queue <= COALESCE((SELECT q.room FROM named_queues AS q WHERE q.queue = o.queue), :default_room)
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
SELECT (SELECT count(*) FROM oldest) AS found,
       (SELECT count(*) FROM candidates) AS within_limits,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id), '{}') AS fences,
       COALESCE(array_agg(c.queue ORDER BY c.created_at, c.id), '{}') AS queues,
       COALESCE(array_agg(c.workflow_id ORDER BY c.created_at, c.id), '{}') AS workflows,
       COALESCE(array_agg(COALESCE(c.workspace_id, '') ORDER BY c.created_at, c.id), '{}') AS workspaces,
       ARRAY(SELECT h.id FROM candidates AS h WHERE :choose ORDER BY h.created_at, h.id) AS chosen_ids,
       ARRAY(SELECT h.id FROM candidates AS h WHERE h.in_ledger AND NOT h.id IN (SELECT f.run_id FROM free_row AS f))
           AS held_ids
  FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id
""")

# Claim some of the runs that one of the statements above has chosen and locked.
CLAIM_GIVEN = text("""
WITH candidates AS MATERIALIZED (
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
           COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS in_ledger,
           orcheo_dispatch.policy_of(r.workspace_id, r.workflow_id) ->> 'queue' AS queue
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
            dispatcher_id, created_at, queue)
    SELECT c.id, c.workflow_id, c.workspace_id, c.triggered_by, 'claimed',
           ((EXTRACT(epoch FROM now()) * 1000)::bigint << 10) + 1,
           CASE WHEN c.workspace_id IS NULL THEN 'none' ELSE 'held' END,
           now(), now() + make_interval(secs => :lease), CAST(:dispatcher_id AS uuid), c.created_at, c.queue
      FROM candidates AS c
     WHERE NOT c.in_ledger OR c.id IN (SELECT f.run_id FROM free_row AS f)
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'claimed', outcome = NULL, claimed_at = now(), published_at = NULL,
           fence = GREATEST(d.fence + 1, EXCLUDED.fence + LEAST(d.fence & 1023, 1022)),
           begun_at = NULL, heartbeat_at = NULL, lease_expires_at = EXCLUDED.lease_expires_at, settled_at = NULL,
           dispatcher_id = EXCLUDED.dispatcher_id, worker_id = NULL, reason = NULL,
           created_at = EXCLUDED.created_at, queue = EXCLUDED.queue
     WHERE d.state = 'settled'
    RETURNING d.run_id, d.fence
)
SELECT n.run_id, n.fence, c.queue, c.workflow_id AS workflow, COALESCE(c.workspace_id, '') AS workspace
  FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id ORDER BY c.created_at, c.id
""")
