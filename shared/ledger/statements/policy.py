"""Policies of operators, the log of operations, and the use of rates.

A scope is a pair of a workspace and a workflow, one of them '' or both: all runs.
"""

from sqlalchemy import text

# Whom the trigger of the table records as the author, until the end of the transaction.
AUTHOR = text("""
SELECT set_config('orcheo_dispatch.author', :by, true), set_config('orcheo_dispatch.interface', :interface, true),
       set_config('orcheo_dispatch.why', COALESCE(:why, ''), true)
""")

# All policies, or those of the scopes that concern one workflow and one workspace; wider scopes first.
POLICIES = text("""
SELECT p.workspace_id, p.workflow_id, p.maintenance, p.paused, p.paused_until, p.priority, p.max_running, p.rate_runs,
       p.rate_seconds, p.queue, p.timeout_seconds, p.lost_runs, p.retries, p.isolation, p.why, p.by, p.at
  FROM orcheo_dispatch.policy AS p
 WHERE CAST(:workspace_id AS text) IS NULL
    OR (p.workflow_id = '' AND p.workspace_id IN ('', :workspace_id))
    OR (p.workspace_id = '' AND p.workflow_id = :workflow_id)
 ORDER BY p.workflow_id <> '', p.workspace_id <> '', p.workspace_id, p.workflow_id
 LIMIT :limit
""")

# Taken before a policy is set, so that two changes of one scope follow each other; a separate statement, because the
# next one must see what the other session has set.
POLICIES_LOCK = text("SELECT pg_advisory_xact_lock(205392149)")

# Set the fields that :fields names, an object of field and value; a null takes a field back. Other fields stay. A
# scope without a row gets one.
SET_POLICY = text("""
WITH named AS MATERIALIZED (
    SELECT jsonb_populate_record(NULL::orcheo_dispatch.policy,
                                 COALESCE(to_jsonb(p), '{}') || CAST(:fields AS jsonb)) AS row
      FROM (SELECT 1) AS one
      LEFT JOIN orcheo_dispatch.policy AS p ON p.workspace_id = :of_workspace AND p.workflow_id = :of_workflow
)
INSERT INTO orcheo_dispatch.policy AS p
       (workspace_id, workflow_id, maintenance, paused, paused_until, priority, max_running, rate_runs, rate_seconds,
        queue, timeout_seconds, lost_runs, retries, isolation, why)
SELECT :of_workspace, :of_workflow, (n.row).maintenance, (n.row).paused, (n.row).paused_until, (n.row).priority,
       (n.row).max_running, (n.row).rate_runs, (n.row).rate_seconds, (n.row).queue, (n.row).timeout_seconds,
       (n.row).lost_runs, (n.row).retries, (n.row).isolation, CAST(:why AS text)
  FROM named AS n
    ON CONFLICT (workspace_id, workflow_id) DO UPDATE
   SET maintenance = EXCLUDED.maintenance, paused = EXCLUDED.paused, paused_until = EXCLUDED.paused_until,
       priority = EXCLUDED.priority, max_running = EXCLUDED.max_running, rate_runs = EXCLUDED.rate_runs,
       rate_seconds = EXCLUDED.rate_seconds, queue = EXCLUDED.queue, timeout_seconds = EXCLUDED.timeout_seconds,
       lost_runs = EXCLUDED.lost_runs, retries = EXCLUDED.retries, isolation = EXCLUDED.isolation, why = EXCLUDED.why
RETURNING p.workspace_id, p.workflow_id, p.maintenance, p.paused, p.paused_until, p.priority, p.max_running,
          p.rate_runs, p.rate_seconds, p.queue, p.timeout_seconds, p.lost_runs, p.retries, p.isolation, p.why, p.by,
          p.at
""")

# Delete the policy of a scope.
CLEAR_POLICY = text("""
DELETE FROM orcheo_dispatch.policy AS p WHERE p.workspace_id = :of_workspace AND p.workflow_id = :of_workflow
RETURNING p.workspace_id, p.workflow_id, p.maintenance, p.paused, p.paused_until, p.priority, p.max_running,
          p.rate_runs, p.rate_seconds, p.queue, p.timeout_seconds, p.lost_runs, p.retries, p.isolation, p.why, p.by,
          p.at
""")

# Append to the log of operations.
RECORD_OPERATION = text("""
INSERT INTO orcheo_dispatch.operation
       (by, interface, action, workspace_id, workflow_id, run_ids, details, changed, refused, why)
VALUES (:by, :interface, :action, CAST(:workspace_id AS text), CAST(:workflow_id AS text), CAST(:run_ids AS text[]),
        CAST(:details AS jsonb), :changed, :refused, CAST(:why AS text))
RETURNING id
""")

# The newest operations; with :before, those before that number.
OPERATIONS = text("""
SELECT o.id, o.at, o.by, o.interface, o.action, o.workspace_id, o.workflow_id, o.run_ids, o.details, o.changed,
       o.refused, o.why
  FROM orcheo_dispatch.operation AS o
 WHERE CAST(:before AS bigint) IS NULL OR o.id < :before
 ORDER BY o.id DESC
 LIMIT :limit
""")

# The newest operations, each with its number of runs and the first of them.
ENTRIES = text("""
SELECT o.id, o.at, o.by, o.interface, o.action, o.workspace_id, o.workflow_id, cardinality(o.run_ids) AS runs,
       o.run_ids[1] AS run_id, o.details, o.changed, o.refused, o.why
  FROM orcheo_dispatch.operations AS o
 ORDER BY o.id DESC
 LIMIT :limit
""")

# Count claims against the rates of these workflows, their workspaces and all runs. A claim counts for the
# period, and up to one percent longer: claims within one percent of the period share a row.
SPEND = text("""
WITH taken AS MATERIALIZED (
    SELECT n.workspace_id, n.workflow_id, n.runs
      FROM unnest(CAST(:workspaces AS text[]), CAST(:workflows AS text[]), CAST(:claims AS integer[]))
           AS n(workspace_id, workflow_id, runs)
), spent AS MATERIALIZED (
    SELECT p.workspace_id, p.workflow_id, p.rate_seconds, t.runs
      FROM taken AS t JOIN orcheo_dispatch.policy AS p ON p.workspace_id = '' AND p.workflow_id = t.workflow_id
     WHERE p.rate_runs IS NOT NULL
     UNION ALL
    SELECT p.workspace_id, p.workflow_id, p.rate_seconds, t.runs
      FROM taken AS t JOIN orcheo_dispatch.policy AS p ON p.workspace_id = t.workspace_id AND p.workflow_id = ''
     WHERE p.rate_runs IS NOT NULL AND t.workspace_id <> ''
     UNION ALL
    SELECT p.workspace_id, p.workflow_id, p.rate_seconds, t.runs
      FROM taken AS t JOIN orcheo_dispatch.policy AS p ON p.workspace_id = '' AND p.workflow_id = ''
     WHERE p.rate_runs IS NOT NULL
)
INSERT INTO orcheo_dispatch.rate_use AS u (workspace_id, workflow_id, until, runs)
SELECT s.workspace_id, s.workflow_id,
       date_bin(make_interval(secs => s.rate_seconds / 100.0), now(), '2000-01-01 00:00+00')
           + make_interval(secs => s.rate_seconds * 1.01),
       sum(s.runs)
  FROM spent AS s GROUP BY s.workspace_id, s.workflow_id, s.rate_seconds
    ON CONFLICT (workspace_id, workflow_id, until) DO UPDATE SET runs = u.runs + EXCLUDED.runs
""")

# Delete what no longer counts against a rate.
PRUNE_RATES = text("""
WITH old AS (
    SELECT u.workspace_id, u.workflow_id, u.until FROM orcheo_dispatch.rate_use AS u
     WHERE u.until < now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM orcheo_dispatch.rate_use AS u USING old
 WHERE u.workspace_id = old.workspace_id AND u.workflow_id = old.workflow_id AND u.until = old.until
""")

# Why pending runs wait, and who decided the policy that holds them back; a list that is empty is no filter.
HELD_BACK = text("""
SELECT h.run_id, h.workflow_id, h.workspace_id, h.triggered_by, h.created_at, h.age_seconds AS age, h.claim, h.queue,
       h.reason, h.scope, h.until, h.used, h.allowed, p.by, p.why
  FROM (SELECT * FROM orcheo_dispatch.held_back_runs AS r
         WHERE CAST(:run_ids AS text[]) = '{}' OR r.run_id = ANY (CAST(:run_ids AS text[]))
         ORDER BY r.created_at, r.run_id
         LIMIT :limit) AS h
  LEFT JOIN orcheo_dispatch.policies AS p
    ON p.scope = h.scope
   AND CASE h.scope WHEN 'workflow' THEN p.workflow_id = h.workflow_id
                    WHEN 'workspace' THEN p.workspace_id = h.workspace_id ELSE true END
 ORDER BY h.created_at, h.run_id
""")

# The workflows with the most pending runs, among the 25,000 oldest pending runs. The run tells why the others wait: the
# oldest one that is not claimed, if there is any.
PENDING_WORKFLOWS = text("""
SELECT p.workflow_id, min(p.workspace_id) AS workspace_id, count(*) AS pending, max(p.age_seconds) AS oldest_age,
       (array_agg(p.run_id ORDER BY p.claim IS NOT NULL, p.created_at, p.run_id))[1] AS run_id
  FROM (SELECT r.run_id, r.workflow_id, r.workspace_id, r.created_at, r.age_seconds, r.claim
          FROM orcheo_dispatch.all_pending_runs AS r
         WHERE r.ours ORDER BY r.created_at, r.run_id LIMIT 25000) AS p
 GROUP BY p.workflow_id
 ORDER BY count(*) DESC, p.workflow_id
 LIMIT :limit
""")

# Why late runs wait, among the 25,000 oldest of them. A requeued run is as old as it was.
LATE_REASONS = text("""
SELECT count(*) FILTER (WHERE h.reason IN ('maintenance', 'paused')) AS paused,
       count(*) FILTER (WHERE h.reason IN ('limit_reached', 'rate_used_up')) AS limited,
       count(*) FILTER (WHERE h.requeued) AS requeued
  FROM (SELECT r.reason,
               (SELECT d.outcome = 'requeued' FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.run_id) AS requeued
          FROM orcheo_dispatch.held_back_runs AS r
         WHERE r.created_at < now() - interval '5 minutes'
         ORDER BY r.created_at, r.run_id
         LIMIT 25000) AS h
""")

# The runs and claims of a workflow, of its workspace and of all that count against limits, and the workflow's pending
# runs.
POLICY_USE = text("""
SELECT (SELECT count(*) FROM orcheo_dispatch.live_runs AS l WHERE l.workflow_id = :of_workflow) AS running_of_workflow,
       (SELECT count(*) FROM orcheo_dispatch.live_runs AS l WHERE l.workspace_id = :of_workspace)
           AS running_of_workspace,
       (SELECT count(*) FROM orcheo_dispatch.live_runs AS l) AS running_of_all,
       (SELECT COALESCE(sum(u.runs), 0)::bigint FROM orcheo_dispatch.rate_use AS u
         WHERE u.workspace_id = '' AND u.workflow_id = :of_workflow AND u.until > now()) AS claims_of_workflow,
       (SELECT COALESCE(sum(u.runs), 0)::bigint FROM orcheo_dispatch.rate_use AS u
         WHERE u.workspace_id = :of_workspace AND u.workflow_id = '' AND u.until > now()) AS claims_of_workspace,
       (SELECT COALESCE(sum(u.runs), 0)::bigint FROM orcheo_dispatch.rate_use AS u
         WHERE u.workspace_id = '' AND u.workflow_id = '' AND u.until > now()) AS claims_of_all,
       (SELECT count(*) FROM orcheo_dispatch.all_pending_runs AS p WHERE p.ours AND p.workflow_id = :of_workflow)
           AS pending
""")

# How many live workers consume a queue.
WORKERS_OF_QUEUE = text("""
SELECT count(*) FROM orcheo_dispatch.process AS p
 WHERE p.kind = 'worker' AND p.seen_at > now() - interval '30 seconds'
   AND :queue = ANY (COALESCE(p.queues, '{default}'))
""")

# The workflow with this ID, or those whose IDs begin with it. A workflow that was deleted may have a policy.
FIND_POLICY_WORKFLOW = text("""
SELECT f.id, f.id = :given AS exact
  FROM (SELECT w.id FROM workflows AS w WHERE starts_with(w.id, :given)
         UNION SELECT p.workflow_id FROM orcheo_dispatch.policy AS p
                WHERE p.workflow_id <> '' AND starts_with(p.workflow_id, :given)) AS f
 ORDER BY exact DESC, f.id LIMIT 4
""")

# The workspace of a workflow's runs; the table of workflows has it as well, but a dispatcher may not read it there.
WORKSPACE_OF_RUNS = text("SELECT r.workspace_id FROM workflow_runs AS r WHERE r.workflow_id = :of_workflow LIMIT 1")

# Whether the table of Orcheo's workspaces exists and this role may read it.
MAY_READ_WORKSPACES = text("SELECT COALESCE(has_column_privilege(to_regclass('workspaces'), 'id', 'SELECT'), false)")

# Whether there is something of this workspace: a policy, or a run.
WORKSPACE_IN_USE = text("""
SELECT EXISTS (SELECT FROM orcheo_dispatch.policy AS p WHERE p.workspace_id = :of_workspace)
    OR EXISTS (SELECT FROM workflow_runs AS r WHERE r.workspace_id = :of_workspace)
""")

# The time of the database.
NOW = text("SELECT now()")
