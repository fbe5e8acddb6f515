-- Executed by each `migrate`, after the migrations: each statement may be repeated.
--
-- What is pending and ours, late, running without a valid lease, and alive: each defined by one view. The commands, the
-- status page, the metrics and the other views read these four: all_pending_runs, our_pending_runs, live_runs, processes.


CREATE OR REPLACE VIEW orcheo_dispatch.all_pending_runs AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age_seconds,
       r.created_at < now() - interval '5 minutes' AS late,
       (a.every_trigger OR r.triggered_by = ANY (a.triggers))
               AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
           OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS k WHERE k.run_id = r.id), false) AS ours,
       d.state AS claim
  FROM workflow_runs AS r
 CROSS JOIN orcheo_dispatch.allow_list AS a
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id AND d.state IN ('claimed', 'published')
 WHERE r.status = 'pending';

COMMENT ON VIEW orcheo_dispatch.all_pending_runs IS
    'All pending runs. Not bounded: name a LIMIT, or count. The definition of pending, late and ours.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.triggered_by IS 'Label of the trigger, as the API wrote it.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.created_at IS 'Time at which the API created it.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.age_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.late IS 'Whether it is older than five minutes.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.ours IS
    'Whether a dispatcher claims it: allow_list contains its label and ChatKit did not create it, or it has a row in the ledger.';
COMMENT ON COLUMN orcheo_dispatch.all_pending_runs.claim IS 'claimed or published; null if no dispatcher has claimed it.';


CREATE OR REPLACE VIEW orcheo_dispatch.our_pending_runs AS
SELECT p.run_id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at, p.age_seconds, p.late, p.claim
  FROM orcheo_dispatch.all_pending_runs AS p
 WHERE p.ours
 ORDER BY p.created_at, p.run_id LIMIT 25000;

COMMENT ON VIEW orcheo_dispatch.our_pending_runs IS
    'Pending runs that a dispatcher claims: the 25,000 oldest. However many other runs are pending, they do not hide these.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.triggered_by IS 'Label of the trigger, as the API wrote it.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.created_at IS 'Time at which the API created it.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.age_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.late IS 'Whether it is older than five minutes.';
COMMENT ON COLUMN orcheo_dispatch.our_pending_runs.claim IS 'claimed or published; null if no dispatcher has claimed it.';


CREATE OR REPLACE VIEW orcheo_dispatch.live_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.state, d.attempts, d.worker_id, d.claimed_at,
       d.begun_at, d.heartbeat_at, d.lease_expires_at,
       d.state = 'running' AND d.lease_expires_at < now() AS stuck
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.state IN ('claimed', 'published', 'running');

COMMENT ON VIEW orcheo_dispatch.live_runs IS
    'Runs that are claimed, published or running. Not bounded, but limits bound how many there are. The definition of stuck.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.triggered_by IS 'Label of the trigger, as the API wrote it.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.state IS 'claimed, published or running.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.attempts IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.worker_id IS 'ID of the worker that began it: see processes.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.claimed_at IS 'Time of its claim.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.begun_at IS 'Time at which it began; null if it has not.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.heartbeat_at IS 'Time of the last heartbeat for it.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.lease_expires_at IS 'Time at which its lease expires.';
COMMENT ON COLUMN orcheo_dispatch.live_runs.stuck IS 'Whether it is running although its lease has expired.';


CREATE OR REPLACE VIEW orcheo_dispatch.pending_runs AS
SELECT p.run_id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at, p.age_seconds, p.late, p.ours, p.claim
  FROM orcheo_dispatch.all_pending_runs AS p
 ORDER BY p.created_at, p.run_id LIMIT 25000;


CREATE OR REPLACE VIEW orcheo_dispatch.pending_kpi AS
SELECT count(*) AS pending,
       count(*) FILTER (WHERE late) AS late,
       COALESCE(count(*) FILTER (WHERE late)::float8 / NULLIF(count(*), 0), 0) AS late_share,
       COALESCE(max(age_seconds), 0) AS oldest_seconds
  FROM orcheo_dispatch.our_pending_runs;

CREATE OR REPLACE VIEW orcheo_dispatch.pending_ages AS
SELECT p.pending, p.seconds[1] AS p50_seconds, p.seconds[2] AS p90_seconds, p.seconds[3] AS p95_seconds,
       p.seconds[4] AS p99_seconds, p.seconds[5] AS max_seconds
  FROM (SELECT count(*) AS pending,
               percentile_disc(ARRAY[0.5, 0.9, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY age_seconds) AS seconds
          FROM orcheo_dispatch.our_pending_runs) AS p;


CREATE OR REPLACE VIEW orcheo_dispatch.stuck_runs AS
SELECT l.run_id, l.workflow_id, l.workspace_id, l.triggered_by, l.attempts, l.worker_id, l.begun_at, l.heartbeat_at,
       EXTRACT(epoch FROM now() - l.lease_expires_at)::float8 AS overdue_seconds
  FROM orcheo_dispatch.live_runs AS l
 WHERE l.stuck
 ORDER BY l.lease_expires_at LIMIT 10000;


CREATE OR REPLACE VIEW orcheo_dispatch.queue_and_backlog AS
SELECT b.pending AS backlog, GREATEST(b.pending - l.claimed - l.published, 0) AS unclaimed,
       l.claimed, l.published, l.running, l.stuck, w.workers, w.capacity, s.slots_due
  FROM orcheo_dispatch.pending_kpi AS b
 CROSS JOIN (SELECT count(*) FILTER (WHERE state = 'claimed') AS claimed,
                    count(*) FILTER (WHERE state = 'published') AS published,
                    count(*) FILTER (WHERE state = 'running') AS running,
                    count(*) FILTER (WHERE stuck) AS stuck
               FROM orcheo_dispatch.live_runs) AS l
 CROSS JOIN (SELECT count(*) AS workers, COALESCE(sum(concurrency), 0)::bigint AS capacity
               FROM orcheo_dispatch.processes WHERE kind = 'worker' AND alive) AS w
 CROSS JOIN (SELECT count(*) AS slots_due FROM orcheo_dispatch.dispatch WHERE slot = 'due') AS s;


CREATE OR REPLACE VIEW orcheo_dispatch.runs_by_hour AS
SELECT date_bin('1 hour', s.since, '2000-01-01 00:00+00') AS hour, s.status, sum(s.runs)::bigint AS runs
  FROM (SELECT e.minute AS since,
               CASE WHEN e.outcome IN ('failed', 'timed_out', 'lost') THEN 'failed' ELSE e.outcome END AS status,
               e.runs
          FROM (SELECT c.minute, c.outcome, c.runs FROM orcheo_dispatch.ended AS c
                 UNION ALL
                SELECT date_bin('1 minute', d.settled_at, '2000-01-01 00:00+00'), d.outcome, count(*)
                  FROM orcheo_dispatch.dispatch AS d
                 WHERE d.state = 'settled'
                   AND d.settled_at >= (SELECT COALESCE(max(n.minute) + interval '1 minute', '-infinity')
                                          FROM orcheo_dispatch.ended AS n)
                   AND d.settled_at < (SELECT now() + interval '1 hour')
                 GROUP BY 1, 2) AS e
         WHERE e.minute >= date_bin('1 hour', now(), '2000-01-01 00:00+00') - interval '167 hours'
           AND e.outcome IN ('succeeded', 'failed', 'timed_out', 'lost', 'cancelled')
         UNION ALL
        SELECT l.begun_at, 'running', 1 FROM orcheo_dispatch.live_runs AS l WHERE l.state = 'running'
         UNION ALL
        SELECT p.created_at, 'pending', 1 FROM orcheo_dispatch.our_pending_runs AS p) AS s
 GROUP BY 1, 2;


-- Why each of our pending runs waits. Reads what operators decided as claims do: see CLAIM.
CREATE OR REPLACE VIEW orcheo_dispatch.held_back_runs AS
WITH live AS MATERIALIZED (
    SELECT l.workflow_id, COALESCE(l.workspace_id, '') AS workspace_id, count(*) AS runs
      FROM orcheo_dispatch.live_runs AS l GROUP BY 1, 2
), used AS MATERIALIZED (
    SELECT u.workspace_id, u.workflow_id, sum(u.runs)::bigint AS runs, min(u.until) AS until
      FROM orcheo_dispatch.rate_use AS u WHERE u.until > now() GROUP BY 1, 2
), scope AS MATERIALIZED (
    -- Each policy, and how much of its limits is in use.
    SELECT p.workspace_id, p.workflow_id, p.maintenance, orcheo_dispatch.paused_now(p.paused, p.paused_until) AS paused,
           p.paused_until, p.queue, p.max_running, n.running, p.rate_runs, p.rate_seconds,
           COALESCE(u.runs, 0) AS claims, u.until,
           COALESCE(n.running >= p.max_running, false) AS is_full, COALESCE(u.runs >= p.rate_runs, false) AS is_spent
      FROM orcheo_dispatch.policy AS p
     CROSS JOIN LATERAL (
        SELECT COALESCE(sum(l.runs), 0)::bigint AS running FROM live AS l
         WHERE (p.workflow_id = '' OR l.workflow_id = p.workflow_id)
           AND (p.workspace_id = '' OR l.workspace_id = p.workspace_id)) AS n
      LEFT JOIN used AS u ON u.workspace_id = p.workspace_id AND u.workflow_id = p.workflow_id
), served AS MATERIALIZED (
    -- Queues that a live worker consumes.
    SELECT DISTINCT unnest(COALESCE(p.queues, '{default}')) AS queue
      FROM orcheo_dispatch.process AS p
     WHERE p.kind = 'worker' AND p.seen_at > now() - interval '30 seconds'
)
SELECT r.run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at, r.age_seconds, r.claim, v.queue, y.reason,
       CASE y.reason WHEN 'maintenance' THEN 'all' WHEN 'paused' THEN v.paused_by WHEN 'limit_reached' THEN v.full_of
                     WHEN 'rate_used_up' THEN v.spent_of WHEN 'no_worker' THEN v.queue_by END AS scope,
       CASE y.reason WHEN 'paused' THEN CASE v.paused_by WHEN 'workflow' THEN f.paused_until
                                                         WHEN 'workspace' THEN w.paused_until ELSE a.paused_until END
                     WHEN 'rate_used_up' THEN CASE v.spent_of WHEN 'workflow' THEN f.until
                                                              WHEN 'workspace' THEN w.until ELSE a.until END END
           AS until,
       CASE y.reason WHEN 'limit_reached' THEN CASE v.full_of WHEN 'workflow' THEN f.running
                                                              WHEN 'workspace' THEN w.running ELSE a.running END
                     WHEN 'rate_used_up' THEN CASE v.spent_of WHEN 'workflow' THEN f.claims
                                                              WHEN 'workspace' THEN w.claims ELSE a.claims END END
           AS used,
       CASE y.reason WHEN 'limit_reached' THEN CASE v.full_of WHEN 'workflow' THEN f.max_running
                                                              WHEN 'workspace' THEN w.max_running ELSE a.max_running END
                     WHEN 'rate_used_up' THEN CASE v.spent_of WHEN 'workflow' THEN f.rate_runs
                                                              WHEN 'workspace' THEN w.rate_runs ELSE a.rate_runs END END
           AS allowed
  FROM orcheo_dispatch.all_pending_runs AS r
  LEFT JOIN scope AS f ON f.workspace_id = '' AND f.workflow_id = r.workflow_id
  LEFT JOIN scope AS w ON w.workflow_id = '' AND w.workspace_id = r.workspace_id AND w.workspace_id <> ''
  LEFT JOIN scope AS a ON a.workflow_id = '' AND a.workspace_id = ''
 CROSS JOIN LATERAL (
    SELECT COALESCE(f.queue, w.queue, a.queue, 'default') AS queue,
           CASE WHEN f.queue IS NOT NULL THEN 'workflow' WHEN w.queue IS NOT NULL THEN 'workspace'
                WHEN a.queue IS NOT NULL THEN 'all' END AS queue_by,
           CASE WHEN f.paused IS NOT NULL THEN CASE WHEN f.paused THEN 'workflow' END
                WHEN w.paused IS NOT NULL THEN CASE WHEN w.paused THEN 'workspace' END
                WHEN a.paused THEN 'all' END AS paused_by,
           CASE WHEN f.is_full THEN 'workflow' WHEN w.is_full THEN 'workspace' WHEN a.is_full THEN 'all' END AS full_of,
           CASE WHEN f.is_spent THEN 'workflow' WHEN w.is_spent THEN 'workspace' WHEN a.is_spent THEN 'all' END
               AS spent_of) AS v
 CROSS JOIN LATERAL (
    SELECT CASE WHEN a.maintenance THEN 'maintenance'
                WHEN v.paused_by IS NOT NULL THEN 'paused'
                WHEN NOT EXISTS (SELECT FROM served AS s WHERE s.queue = v.queue) THEN 'no_worker'
                WHEN r.claim IS NOT NULL THEN 'queued'
                WHEN v.full_of IS NOT NULL THEN 'limit_reached'
                WHEN v.spent_of IS NOT NULL THEN 'rate_used_up'
                ELSE 'in_turn' END AS reason OFFSET 0) AS y
 WHERE r.ours;

COMMENT ON VIEW orcheo_dispatch.held_back_runs IS
    'Pending runs that a dispatcher claims, and why each waits. Not bounded: name a LIMIT, or count.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.triggered_by IS 'Label of the trigger, as the API wrote it.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.created_at IS 'Time at which the API created it.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.age_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.claim IS
    'claimed or published; null if no dispatcher has claimed it.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.queue IS 'Queue that its policy names, or default.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.reason IS
    'maintenance, paused, no_worker (no live worker consumes its queue), limit_reached, rate_used_up, queued (claimed, and waits for a worker) or in_turn (nothing but its turn).';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.scope IS
    'Scope of the policy that holds it back: all, workspace or workflow; null if none does. Limits of settings are not known here.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.until IS
    'Time at which the pause ends, or the next claim of the rate is possible; null if it is not known.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.used IS
    'Number of runs that count against the limit, or of claims that count against the rate.';
COMMENT ON COLUMN orcheo_dispatch.held_back_runs.allowed IS 'Maximum of used.';


-- What the comments of earlier revisions say, in plainer words.
COMMENT ON VIEW orcheo_dispatch.allow_list IS
    'Which runs are ours: labels that the dispatchers of the last 24 hours claim, or the default if there was none. One row.';
COMMENT ON COLUMN orcheo_dispatch.allow_list.every_trigger IS 'Whether a dispatcher claims runs of all labels: *.';
COMMENT ON VIEW orcheo_dispatch.pending_runs IS 'Runs that wait to begin, ours and others: the 25,000 oldest.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.triggered_by IS 'Label of the trigger, as the API wrote it.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.created_at IS 'Time at which the API created it.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.ours IS
    'Whether a dispatcher claims it: allow_list contains its label and ChatKit did not create it, or it has a row in the ledger.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.claim IS 'claimed or published; null if no dispatcher has claimed it.';
COMMENT ON VIEW orcheo_dispatch.pending_kpi IS
    'The promise: no pending run of ours is older than five minutes. One row, over the 25,000 oldest of our pending runs.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.pending IS 'Pending runs that a dispatcher claims.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.late_share IS 'late / pending, 0 to 1; 0 if none is pending.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.oldest_seconds IS 'Age of the oldest; 0 if none is pending.';
COMMENT ON VIEW orcheo_dispatch.pending_ages IS
    'Percentiles of the ages of our pending runs. One row; ages are null if none is pending.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.pending IS 'Pending runs that a dispatcher claims.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p50_seconds IS 'Median.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p90_seconds IS '90th percentile.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p95_seconds IS '95th percentile.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p99_seconds IS '99th percentile.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.max_seconds IS 'Age of the oldest.';
COMMENT ON VIEW orcheo_dispatch.pending_by_trigger IS
    'Pending runs by label of the trigger, ours and others, over the 25,000 oldest.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.ours IS 'Whether a dispatcher claims them: see all_pending_runs.';
COMMENT ON VIEW orcheo_dispatch.settled_runs IS
    'Claims that ended in the last 24 hours: the newest 1,000, newest first.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.error_class IS
    'Class of the error, or the reason why the run was given up; null if it succeeded. Never an error text.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.attempts IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.created_at IS
    'Time at which the API created it; null if it was claimed by a release that did not record it.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.claimed_at IS 'Time of its last claim.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.begun_at IS
    'Time at which it began under that claim; null if it did not.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.settled_at IS 'Time at which that claim ended.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.pending_seconds IS
    'Seconds from creation to claim; null for all but the first attempt.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.queued_seconds IS 'Seconds from claim to begin.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.running_seconds IS 'Seconds from begin to end.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.total_seconds IS 'Seconds from creation to end.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.worker_id IS 'ID of the worker that began it: see processes.';
COMMENT ON VIEW orcheo_dispatch.ended_by_minute IS
    'Number of claims that ended in each minute of the last 24 hours, by outcome. A minute in which none ended has no row.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.minute IS 'Start of the minute.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.outcome IS
    'succeeded, failed, timed_out, lost, cancelled; skipped, released and requeued do not end a run.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.runs IS 'Number of them.';
COMMENT ON VIEW orcheo_dispatch.runs_by_hour IS
    'Runs by status and the hour in which they reached it: those that ended in the last 168 hours (a week), and all that are running or pending.';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.hour IS
    'Hour in which the run was created (pending), began (running) or ended (all others).';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.status IS
    'Status in the API: pending, running, succeeded, failed, cancelled. Timed out and lost runs are failed.';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.runs IS 'Number of them.';
COMMENT ON VIEW orcheo_dispatch.throughput IS
    'Runs that ended in each of the last 60 whole minutes; one row per minute.';
COMMENT ON COLUMN orcheo_dispatch.throughput.minute IS 'Start of the minute.';
COMMENT ON COLUMN orcheo_dispatch.throughput.ended IS 'Runs that ended, with any outcome.';
COMMENT ON VIEW orcheo_dispatch.workflow_latencies IS
    'Durations of runs by workflow, over the newest 10,000 runs that began and ended in the last 24 hours.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.workflow_id IS 'ID of the workflow.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.pending_p50_seconds IS
    'Seconds from creation to the first claim: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.pending_p95_seconds IS 'The same: 95th percentile.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.queued_p50_seconds IS 'Seconds from claim to begin: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.queued_p95_seconds IS 'The same: 95th percentile.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_p50_seconds IS 'Seconds from begin to end: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_p95_seconds IS 'The same: 95th percentile.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_max_seconds IS 'The same: maximum.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.total_p50_seconds IS 'Seconds from creation to end: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.total_p95_seconds IS 'The same: 95th percentile.';
COMMENT ON VIEW orcheo_dispatch.slowest_workflows IS
    'The 20 workflows whose runs take longest, slowest first; see workflow_latencies.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.workflow_id IS 'ID of the workflow.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_p50_seconds IS 'Seconds from begin to end: median.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_p95_seconds IS 'The same: 95th percentile.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_max_seconds IS 'The same: maximum.';
COMMENT ON VIEW orcheo_dispatch.failures IS
    'Runs that failed in the last 24 hours (the newest 10,000), by outcome and class of the error.';
COMMENT ON COLUMN orcheo_dispatch.failures.error_class IS
    'Class of the exception, or timed_out, worker_lost, drained, lease_over, unstorable_output, by hand. Never an error text.';
COMMENT ON COLUMN orcheo_dispatch.failures.runs IS 'Number of them.';
COMMENT ON COLUMN orcheo_dispatch.failures.workflows IS 'Number of workflows that they belong to.';
COMMENT ON COLUMN orcheo_dispatch.failures.last_at IS 'Time at which the last one ended.';
COMMENT ON VIEW orcheo_dispatch.stuck_runs IS
    'Runs that are running although their lease has expired: the 10,000 whose lease expired first. A poll ends or requeues them, unless ORCHEO_DISPATCH_LOST_RUNS is hold.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.attempts IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.worker_id IS 'ID of the worker that began it: see processes.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.begun_at IS 'Time at which it began.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.heartbeat_at IS 'Time of the last heartbeat of that worker for it.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.overdue_seconds IS 'Seconds since its lease expired.';
COMMENT ON VIEW orcheo_dispatch.lost_runs IS
    'Runs whose worker was lost in the last 24 hours: the newest 1,000. A requeued run is listed until it is claimed again.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.attempts IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.worker_id IS 'ID of the worker that was lost: see processes.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.begun_at IS 'Time at which it began.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.heartbeat_at IS 'Time of the last heartbeat of that worker for it.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.settled_at IS 'Time at which it was ended or requeued.';
COMMENT ON VIEW orcheo_dispatch.running_elsewhere IS
    'Runs that are running, but not in one of our workers: ChatKit''s, or left by another worker. Nothing here monitors them.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.since IS 'Time at which the API''s row last changed.';
COMMENT ON VIEW orcheo_dispatch.processes IS
    'Processes that are alive, and those of the last 24 hours that ended without deregistering. A process that deregistered is not listed. The definition of alive.';
COMMENT ON COLUMN orcheo_dispatch.processes.id IS 'ID of the process; new at each start.';
COMMENT ON COLUMN orcheo_dispatch.processes.host IS 'Name of its host.';
COMMENT ON COLUMN orcheo_dispatch.processes.version IS 'Its release.';
COMMENT ON COLUMN orcheo_dispatch.processes.concurrency IS
    'Maximum number of runs that it executes at a time; 1 for beat and dispatcher.';
COMMENT ON COLUMN orcheo_dispatch.processes.running IS 'Number of runs that it executed when it was last seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.started_at IS 'Time at which it was first seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.seen_at IS 'Time at which it was last seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.vanished IS
    'Whether it is not alive and did not deregister: it crashed, was killed, or has no connection. Never true for a beat, which cannot deregister.';
COMMENT ON VIEW orcheo_dispatch.queue_and_backlog IS
    'Our runs that have not ended, by where they are: in the table, in Redis, in a worker. One row.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.backlog IS 'Pending runs that a dispatcher claims, up to 25,000.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.unclaimed IS 'Those that no dispatcher has claimed yet.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.claimed IS 'Claimed and not marked as published yet.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.published IS
    'Published and not yet begun: their messages are in Redis, or with a worker.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.running IS 'Running in a worker.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.stuck IS 'Those of them whose lease has expired.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.workers IS 'Number of workers that are alive.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.capacity IS 'Maximum number of runs that they execute at a time.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.slots_due IS 'Number of run slots that are still to be returned.';
COMMENT ON VIEW orcheo_dispatch.oldest_transactions IS
    'What prevents VACUUM from removing dead rows: the 20 oldest, oldest first. Long transactions slow down each claim.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.pid IS
    'Process ID for pg_terminate_backend; null if there is none.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.state IS
    'State in pg_stat_activity; null if the reader is neither a member of that role nor of pg_read_all_stats.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.seconds IS
    'Seconds since it began; null in the same cases as state.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.xmin_age IS
    'Number of transactions that began since. Visible to every role.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.created_at IS 'Time at which the API created it.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.updated_at IS 'Time at which it last changed.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.workflow_id IS 'ID of the workflow.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.workflow_version_id IS
    'ID of the version; null: all versions of the workflow.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.reason IS 'What one of its runs did, or what the operator wrote.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.since IS 'Time at which it was isolated.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.until IS
    'Time at which it expires; null: when an operator clears it.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.last_seen_at IS
    'Time at which a worker last saw it harm other runs or its process; null: never.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.times IS 'Number of times workers have seen that.';
