"""Workflows whose runs are executed in dedicated runners: recorded by workers or decided by operators.

An empty version means all versions of the workflow.
"""

from sqlalchemy import text

# Isolations in force, those that expire last first, so that a limit leaves out those that expire soonest.
ISOLATED = text("""
SELECT i.workflow_id, NULLIF(i.workflow_version_id, '') AS workflow_version_id, i.reason, i.by, i.since, i.until,
       i.last_seen_at, i.times
  FROM orcheo_dispatch.isolation AS i
 WHERE i.until IS NULL OR i.until > now()
 ORDER BY i.until DESC NULLS FIRST, i.workflow_id, i.workflow_version_id
 LIMIT :limit
""")

# A worker has seen a run do harm: isolate its version for one day from now. An isolation that lasts longer, such as an
# operator's decision, is not shortened.
RECORD_HARM = text("""
INSERT INTO orcheo_dispatch.isolation AS i
       (workflow_id, workflow_version_id, reason, by, since, until, last_seen_at, times)
VALUES (:workflow_id, :version_id, :reason, 'worker', now(), now() + interval '1 day', now(), :times)
    ON CONFLICT (workflow_id, workflow_version_id) DO UPDATE
   SET reason = CASE WHEN i.until <= EXCLUDED.until THEN EXCLUDED.reason ELSE i.reason END,
       by = CASE WHEN i.until <= EXCLUDED.until THEN EXCLUDED.by ELSE i.by END,
       since = CASE WHEN i.until <= now() THEN EXCLUDED.since ELSE i.since END,
       until = CASE WHEN i.until <= EXCLUDED.until THEN EXCLUDED.until ELSE i.until END,
       last_seen_at = EXCLUDED.last_seen_at,
       -- An integer overflows after two billion.
       times = LEAST(i.times::bigint + EXCLUDED.times, 1000000000)
""")

# Delete rows that expired 30 days ago. Until then they show how often a version has done harm.
PRUNE_ISOLATION = text("""
WITH old AS (
    SELECT i.workflow_id, i.workflow_version_id FROM orcheo_dispatch.isolation AS i
     WHERE i.until < now() - interval '30 days' LIMIT 1000 FOR UPDATE SKIP LOCKED
)
DELETE FROM orcheo_dispatch.isolation AS i USING old
 WHERE i.workflow_id = old.workflow_id AND i.workflow_version_id = old.workflow_version_id
""")

# An operator's decision replaces any earlier isolation. Without :seconds it is in force until it is cleared.
ISOLATE = text("""
INSERT INTO orcheo_dispatch.isolation AS i (workflow_id, workflow_version_id, reason, by, since, until)
VALUES (:workflow_id, :version_id, :reason, :by, now(), now() + make_interval(secs => CAST(:seconds AS float8)))
    ON CONFLICT (workflow_id, workflow_version_id) DO UPDATE
   SET reason = EXCLUDED.reason, by = EXCLUDED.by, until = EXCLUDED.until,
       since = CASE WHEN i.until <= now() THEN EXCLUDED.since ELSE i.since END
RETURNING i.workflow_id, NULLIF(i.workflow_version_id, '') AS workflow_version_id, i.reason, i.by, i.since, i.until,
          i.last_seen_at, i.times
""")

# Without :version_id, clear the isolation of the workflow as a whole and of each of its versions.
CLEAR_ISOLATION = text("""
DELETE FROM orcheo_dispatch.isolation AS i
 WHERE i.workflow_id = :workflow_id
   AND (CAST(:version_id AS text) IS NULL OR i.workflow_version_id = :version_id)
   AND (i.until IS NULL OR i.until > now())
RETURNING i.workflow_id, NULLIF(i.workflow_version_id, '') AS workflow_version_id, i.reason, i.by, i.since, i.until,
          i.last_seen_at, i.times
""")

# The workflow with this id, or those whose ids begin with it. An isolated workflow may have been deleted.
FIND_WORKFLOW = text("""
SELECT f.id, f.id = :given AS exact
  FROM (SELECT w.id FROM workflows AS w WHERE starts_with(w.id, :given)
         UNION SELECT i.workflow_id FROM orcheo_dispatch.isolation AS i WHERE starts_with(i.workflow_id, :given)) AS f
 ORDER BY exact DESC, f.id LIMIT 4
""")

# The version of a workflow with this id or number, or those whose ids begin with it.
FIND_VERSION = text("""
SELECT f.id, bool_or(f.exact) AS exact
  FROM (SELECT v.id, v.id = :given OR v.version::text = :given AS exact
          FROM workflow_versions AS v WHERE v.workflow_id = :workflow_id
         UNION ALL
        SELECT i.workflow_version_id, i.workflow_version_id = :given
          FROM orcheo_dispatch.isolation AS i WHERE i.workflow_id = :workflow_id AND i.workflow_version_id <> '') AS f
 WHERE f.exact OR starts_with(f.id, :given)
 GROUP BY f.id ORDER BY exact DESC, f.id LIMIT 4
""")
