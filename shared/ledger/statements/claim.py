"""Claims: what there is to claim, and taking it."""

from sqlalchemy import text

# Claims are made in turn: by workspace, in a workspace by workflow, and oldest first in a workflow. A pair of the two
# is a key here; a run outside a workspace has '' for it, which is what the index on turns says as well.
#
# Each key with pending runs is found by one step down that index ("loose index scan", PostgreSQL wiki), never by
# reading its runs. A window is :keys keys at most, beginning behind those that had their turn last and going round.
# Conditions are comparisons of rows and ordered by all columns, so that no other index can serve: one on the workflow
# alone would read all of its runs that have ended.
_KEYS_IN_TURN = """
WITH RECURSIVE workspaces (workspace, lap, place) AS (
    SELECT CAST(:after_workspace AS text), 0, 0
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
"""

# The same of given keys: those that had more than their share.
_KEYS_GIVEN = """
WITH keys AS MATERIALIZED (
    SELECT k.workspace, dense_rank() OVER (ORDER BY k.workspace) AS place, k.workflow,
           row_number() OVER (PARTITION BY k.workspace ORDER BY k.workflow) AS place_in_workspace
      FROM unnest(CAST(:workspaces AS text[]), CAST(:workflows AS text[])) AS k(workspace, workflow)
"""

# What is left of the limits, where any is set.
_LIVE = """
), live AS MATERIALIZED (
    SELECT COALESCE(d.workspace_id, '') AS workspace, d.workflow_id AS workflow, count(*) AS runs
      FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running')
       AND (CAST(:per_workflow AS integer) IS NOT NULL OR CAST(:per_workspace AS integer) IS NOT NULL)
     GROUP BY 1, 2
"""

# A pending run is ours where the allow-list names its label, or is `*`, and it is none of ChatKit's; and where it has a
# row in the ledger: it was claimed before, or admitted because the API pushed it.
#
# Runs that are claimed stay pending until they begin, at the head of their key. They are passed over by a hash of
# them, made once a statement, and small enough for any work_mem. What is left is looked at one by one by the
# primary key: as a value, since a NOT EXISTS may become a join with all live rows, where statistics know of none; and
# behind OFFSET 0, so that it is looked at once, for the condition and for the result. Where there is no row, the label
# decides.
#
# A key's share is what divides the room evenly, first by workspace, then by workflow; at least one, but never more
# than its limits leave. A workflow that is there under two workspaces has one turn at a time, so that its limit holds.
_IN_TURN = """
), allowed AS MATERIALIZED (
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
    SELECT a.workspace, a.place, a.workflow, a.place_in_workspace, s.of_workspace,
           LEAST(a.of_workflow, (s.of_workspace + n.workflows - 1) / n.workflows)::bigint AS share,
           a.of_workflow
      FROM allowed AS a
      JOIN (SELECT workspace, count(*) AS workflows, count(*) OVER () AS workspaces
              FROM allowed GROUP BY workspace) AS n ON n.workspace = a.workspace
     CROSS JOIN LATERAL (
        SELECT LEAST(a.of_workspace, (:room + n.workspaces - 1) / n.workspaces) AS of_workspace) AS s
), candidates AS MATERIALIZED (
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
"""

# SKIP LOCKED passes over rows that another dispatcher holds right now, but does not look again at a row
# that another one locked, entered into the ledger and let go, unchanged, since this statement's snapshot.
# For those the conflict clause decides: only a settled row is taken over.
#
# A row of the ledger that somebody holds is passed over as well: the insert would wait for it, and all claims with it.
#
# A fence is the milliseconds of the epoch, times 1024, and in the last ten bits which claim of the run it is, as far as
# the ledger knows. So it is above every fence that the run ever had, also where its row was pruned, or the tables were
# restored as they were before.
_ENTERED = """
), free_row AS MATERIALIZED (
    SELECT d.run_id
      FROM candidates AS c
     CROSS JOIN LATERAL (
        SELECT l.run_id FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = c.id FOR UPDATE SKIP LOCKED) AS d
     WHERE c.in_ledger
), claimed AS (
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
"""

# A row a key: its claims, oldest first, and whether it has more than its share.
_BY_KEY = """
SELECT s.place, s.place_in_workspace, s.workspace, s.workflow,
       count(c.id) AS found, count(c.id) = s.share AND s.share > 0 AND s.share < s.of_workflow AS has_more,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id) FILTER (WHERE n.run_id IS NOT NULL), '{}') AS fences,
       COALESCE(array_agg(c.id) FILTER (WHERE c.in_ledger AND NOT c.id IN (SELECT f.run_id FROM free_row AS f)), '{}')
           AS held_ids
  FROM shares AS s
  LEFT JOIN candidates AS c ON COALESCE(c.workspace_id, '') = s.workspace AND c.workflow_id = s.workflow
  LEFT JOIN claimed AS n ON n.run_id = c.id
 GROUP BY s.place, s.place_in_workspace, s.workspace, s.workflow, s.share, s.of_workflow
 ORDER BY s.place, s.place_in_workspace
"""

# The oldest runs first, whosever they are: where there is no index on turns. Of those that are locked, what is over a
# limit is left; workflows and workspaces that have reached theirs are passed over.
_OLDEST_FIRST = """
), oldest AS MATERIALIZED (
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
"""
_IN_ONE_ROW = """
SELECT (SELECT count(*) FROM oldest) AS found,
       (SELECT count(*) FROM candidates) AS within_limits,
       COALESCE(array_agg(n.run_id ORDER BY c.created_at, c.id), '{}') AS run_ids,
       COALESCE(array_agg(n.fence ORDER BY c.created_at, c.id), '{}') AS fences,
       ARRAY(SELECT h.id FROM candidates AS h WHERE h.in_ledger AND NOT h.id IN (SELECT f.run_id FROM free_row AS f))
           AS held_ids
  FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id
"""

# The way of a claim that Postgres refused as a whole: which runs it would take, and then some of these.
_PICKED = """
)
SELECT c.id AS run_id FROM candidates AS c ORDER BY c.created_at, c.id
"""
_GIVEN_RUNS = """
WITH candidates AS MATERIALIZED (
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
           COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id), false) AS in_ledger
      FROM workflow_runs AS r
     WHERE r.id = ANY (CAST(:run_ids AS text[])) AND r.status || '' = 'pending'
     ORDER BY r.created_at, r.id
       FOR UPDATE OF r SKIP LOCKED
"""
_AS_ENTERED = """
SELECT n.run_id, n.fence FROM claimed AS n JOIN candidates AS c ON c.id = n.run_id ORDER BY c.created_at, c.id
"""

CLAIM = text(_KEYS_IN_TURN + _LIVE + _IN_TURN + _ENTERED + _BY_KEY)
CLAIM_MORE = text(_KEYS_GIVEN + _LIVE + _IN_TURN + _ENTERED + _BY_KEY)
CLAIM_OLDEST_FIRST = text("WITH" + _LIVE.removeprefix("\n),") + _OLDEST_FIRST + _ENTERED + _IN_ONE_ROW)

# In the transaction of a claim, so that the runs stay locked and the limits hold.
CLAIMABLE = text(_KEYS_IN_TURN + _LIVE + _IN_TURN + _PICKED)
CLAIMABLE_OLDEST_FIRST = text("WITH" + _LIVE.removeprefix("\n),") + _OLDEST_FIRST + _PICKED)
CLAIM_GIVEN = text(_GIVEN_RUNS + _ENTERED + _AS_ENTERED)

# Who claims under limits, alone. A statement of its own, before the claim: under READ COMMITTED each has a snapshot
# of its own, and one that was taken before a lock was waited for would not show what the other one claimed.
LIMITED_CLAIMS_LOCK = text("SELECT pg_advisory_xact_lock(205392148)")

# What a poll finds to do: whether leases of running runs are over, whether claims lapsed, how many wait to begin,
# whether anything of ours is pending, whether an index leads to the turns, and whether the server takes no writes: it
# is in recovery, or a default of it says so. Only a look: whoever does what it says decides for itself.
LOOK = text("""
SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch WHERE state = 'running' AND lease_expires_at < now()) AS lost,
       EXISTS (SELECT FROM orcheo_dispatch.dispatch
                WHERE state IN ('claimed', 'published') AND lease_expires_at < now()) AS lapsed,
       (SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published')) AS queued,
       EXISTS (SELECT FROM workflow_runs AS r
                WHERE r.status = 'pending'
                  AND ((:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                           AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
                       OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS a WHERE a.run_id = r.id), false))
               ) AS pending,
       COALESCE((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)), false) AS in_turn,
       EXTRACT(epoch FROM now())::float8 AS at,
       current_setting('transaction_read_only') = 'on' AS read_only
""")
# A server that takes no writes refuses this one, too, and any other changes nothing by it.
WRITE_NOTHING = text("UPDATE orcheo_dispatch.dispatch SET state = state WHERE false")
# How many claims wait to begin.
QUEUED = text("SELECT count(*) FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published')")
