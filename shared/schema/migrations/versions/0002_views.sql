-- What a dashboard reads. Names and columns are stable: a later release adds to them at the end, and takes nothing away.
--
-- Nothing here shows inputs, outputs or the text of an error: of an error only its class, which the ledger keeps.
-- Each view reads what an index leads to, and no more than a bounded number of rows of it, whatever the tables hold.


-- New in the ledger: when the run was created, so that no latency has to ask the API's table run by run; and which
-- runs a dispatcher takes, so that KPI do not count those that nobody asked us to dispatch.
ALTER TABLE orcheo_dispatch.dispatch ADD COLUMN IF NOT EXISTS created_at timestamptz;
ALTER TABLE orcheo_dispatch.process ADD COLUMN IF NOT EXISTS triggers text[];
COMMENT ON COLUMN orcheo_dispatch.process.triggers IS
    'Of a dispatcher: the values of triggered_by that it dispatches; {*} is all.';

-- How many claims ended in each minute, counted by the dispatchers two minutes later, so that nobody has to read
-- a week of the ledger. What is not counted yet, the views count themselves.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.ended (
    minute  timestamptz NOT NULL,
    outcome text NOT NULL,
    runs    bigint NOT NULL,
    PRIMARY KEY (minute, outcome)
);
COMMENT ON TABLE orcheo_dispatch.ended IS 'How many claims ended in each minute of the last month, by outcome.';

-- Written only where a run does not end well; without it, failures would be looked for among all that ended.
CREATE INDEX IF NOT EXISTS dispatch_unwell ON orcheo_dispatch.dispatch (settled_at)
 WHERE outcome IN ('failed', 'timed_out', 'lost', 'requeued');


CREATE OR REPLACE VIEW orcheo_dispatch.allow_list AS
SELECT COALESCE(array_agg(DISTINCT t.trigger ORDER BY t.trigger) FILTER (WHERE t.trigger IS NOT NULL),
                '{webhook,cron,listener,manual,manual_batch,cli,api,canvas}') AS triggers,
       COALESCE(bool_or(t.trigger = '*'), false) AS every_trigger
  FROM orcheo_dispatch.process AS p LEFT JOIN LATERAL unnest(p.triggers) AS t(trigger) ON true;

COMMENT ON VIEW orcheo_dispatch.allow_list IS
    'Which runs are ours: what the dispatchers of the last day take, or the default where none has said. One row.';
COMMENT ON COLUMN orcheo_dispatch.allow_list.triggers IS 'Values of triggered_by.';
COMMENT ON COLUMN orcheo_dispatch.allow_list.every_trigger IS 'Whether a dispatcher takes every run: *.';


CREATE OR REPLACE VIEW orcheo_dispatch.pending_runs AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age_seconds,
       r.created_at < now() - interval '5 minutes' AS late,
       a.every_trigger OR r.triggered_by = ANY (a.triggers) AS ours,
       d.state AS claim
  FROM (SELECT p.id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at
          FROM workflow_runs AS p WHERE p.status = 'pending'
         ORDER BY p.created_at, p.id LIMIT 25000) AS r
 CROSS JOIN orcheo_dispatch.allow_list AS a
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id AND d.state IN ('claimed', 'published');

COMMENT ON VIEW orcheo_dispatch.pending_runs IS 'Runs that wait to begin: the 25,000 oldest.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.triggered_by IS 'Who asked for it, as the API says it.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.created_at IS 'When the API created it.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.age_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.late IS 'Whether it is older than five minutes.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.ours IS 'Whether a dispatcher takes it: see allow_list.';
COMMENT ON COLUMN orcheo_dispatch.pending_runs.claim IS 'claimed or published; null where nobody has claimed it yet.';


CREATE OR REPLACE VIEW orcheo_dispatch.pending_kpi AS
SELECT count(*) AS pending,
       count(*) FILTER (WHERE late) AS late,
       COALESCE(count(*) FILTER (WHERE late)::float8 / NULLIF(count(*), 0), 0) AS late_share,
       COALESCE(max(age_seconds), 0) AS oldest_seconds
  FROM orcheo_dispatch.pending_runs WHERE ours;

COMMENT ON VIEW orcheo_dispatch.pending_kpi IS
    'The promise: no pending run of ours is older than five minutes. One row, of the 25,000 oldest pending runs.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.pending IS 'Pending runs that a dispatcher takes.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.late IS 'Those older than five minutes.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.late_share IS 'late / pending, 0 to 1; 0 where nothing is pending.';
COMMENT ON COLUMN orcheo_dispatch.pending_kpi.oldest_seconds IS 'Age of the oldest; 0 where nothing is pending.';


CREATE OR REPLACE VIEW orcheo_dispatch.pending_ages AS
SELECT p.pending, p.seconds[1] AS p50_seconds, p.seconds[2] AS p90_seconds, p.seconds[3] AS p95_seconds,
       p.seconds[4] AS p99_seconds, p.seconds[5] AS max_seconds
  FROM (SELECT count(*) AS pending,
               percentile_disc(ARRAY[0.5, 0.9, 0.95, 0.99, 1]) WITHIN GROUP (ORDER BY age_seconds) AS seconds
          FROM orcheo_dispatch.pending_runs WHERE ours) AS p;

COMMENT ON VIEW orcheo_dispatch.pending_ages IS
    'Percentiles of the ages of pending runs of ours. One row; its ages are null where nothing is pending.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.pending IS 'Pending runs that a dispatcher takes.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p50_seconds IS 'Half of them are younger than this.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p90_seconds IS 'Nine of ten are younger.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p95_seconds IS '95 of a hundred are younger.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.p99_seconds IS '99 of a hundred are younger.';
COMMENT ON COLUMN orcheo_dispatch.pending_ages.max_seconds IS 'The oldest.';


CREATE OR REPLACE VIEW orcheo_dispatch.pending_by_trigger AS
SELECT triggered_by, ours, count(*) AS pending, count(*) FILTER (WHERE late) AS late,
       max(age_seconds) AS oldest_seconds
  FROM orcheo_dispatch.pending_runs GROUP BY triggered_by, ours;

COMMENT ON VIEW orcheo_dispatch.pending_by_trigger IS 'Pending runs by who asked for them, ours and others.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.triggered_by IS 'Who asked for them.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.ours IS 'Whether a dispatcher takes them: see allow_list.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.pending IS 'Pending runs.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.late IS 'Those older than five minutes.';
COMMENT ON COLUMN orcheo_dispatch.pending_by_trigger.oldest_seconds IS 'Age of the oldest.';


CREATE OR REPLACE VIEW orcheo_dispatch.settled_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.outcome,
       CASE WHEN d.outcome IN ('failed', 'timed_out', 'lost', 'requeued') THEN COALESCE(d.reason, 'unknown') END
           AS error_class,
       d.attempts, d.created_at, d.claimed_at, d.begun_at, d.settled_at,
       CASE WHEN d.attempts = 1 THEN EXTRACT(epoch FROM d.claimed_at - d.created_at)::float8 END AS pending_seconds,
       EXTRACT(epoch FROM d.begun_at - d.claimed_at)::float8 AS queued_seconds,
       EXTRACT(epoch FROM d.settled_at - d.begun_at)::float8 AS running_seconds,
       EXTRACT(epoch FROM d.settled_at - d.created_at)::float8 AS total_seconds,
       d.worker_id
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.state = 'settled' AND d.settled_at > now() - interval '24 hours'
 ORDER BY d.settled_at DESC LIMIT 1000;

COMMENT ON VIEW orcheo_dispatch.settled_runs IS
    'Claims that ended in the last 24 hours, newest first: the newest 1,000. The ledger forgets them after its retention.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.triggered_by IS 'Who asked for it.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.outcome IS
    'succeeded, failed, timed_out, lost, cancelled, skipped; released and requeued runs are pending again.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.error_class IS
    'Class of the error, or why the run was given up; null where it was not. Never a text.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.attempts IS 'How often it has begun.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.created_at IS
    'When the API created it; null for runs that were claimed by a release that did not note it.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.claimed_at IS 'When its last claim was made.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.begun_at IS 'When it began under that claim; null where it did not.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.settled_at IS 'When that claim ended.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.pending_seconds IS
    'From creation to claim; null for all but the first attempt.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.queued_seconds IS 'From claim to begin.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.running_seconds IS 'From begin to end.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.total_seconds IS 'From creation to end.';
COMMENT ON COLUMN orcheo_dispatch.settled_runs.worker_id IS 'The worker that began it: see processes.';


CREATE OR REPLACE VIEW orcheo_dispatch.ended_by_minute AS
SELECT e.minute, e.outcome, e.runs FROM orcheo_dispatch.ended AS e
 WHERE e.minute > now() - interval '24 hours'
 UNION ALL
SELECT date_bin('1 minute', d.settled_at, '2000-01-01 00:00+00'), d.outcome, count(*)
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.state = 'settled'
   AND d.settled_at >= (SELECT COALESCE(max(c.minute) + interval '1 minute', '-infinity')
                          FROM orcheo_dispatch.ended AS c)
   -- Says nothing, but that the span is short: without it the planner expects a third of the table.
   AND d.settled_at < (SELECT now() + interval '1 hour')
   AND d.settled_at > now() - interval '24 hours'
 GROUP BY 1, 2;

COMMENT ON VIEW orcheo_dispatch.ended_by_minute IS
    'How many claims ended in each minute of the last 24 hours, by outcome. Minutes in which none did have no row.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.minute IS 'The minute, by its beginning.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.outcome IS
    'succeeded, failed, timed_out, lost, cancelled; skipped, released and requeued are not the end of a run.';
COMMENT ON COLUMN orcheo_dispatch.ended_by_minute.runs IS 'How many.';


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
        SELECT d.begun_at, 'running', 1 FROM orcheo_dispatch.dispatch AS d WHERE d.state = 'running'
         UNION ALL
        SELECT p.created_at, 'pending', 1 FROM orcheo_dispatch.pending_runs AS p WHERE p.ours) AS s
 GROUP BY 1, 2;

COMMENT ON VIEW orcheo_dispatch.runs_by_hour IS
    'Runs by their status and the hour since which they have it: those that ended within this hour and the 167 before, a week, and all that run or wait.';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.hour IS
    'When the run was created (pending), began (running) or ended (all others), cut to the hour.';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.status IS
    'As the API says it: pending, running, succeeded, failed, cancelled. Timed out and lost runs have failed.';
COMMENT ON COLUMN orcheo_dispatch.runs_by_hour.runs IS 'How many.';


CREATE OR REPLACE VIEW orcheo_dispatch.throughput AS
SELECT m.minute, COALESCE(e.ended, 0) AS ended, COALESCE(e.succeeded, 0) AS succeeded,
       COALESCE(e.failed, 0) AS failed, COALESCE(e.cancelled, 0) AS cancelled
  FROM generate_series(date_trunc('minute', now()) - interval '60 minutes',
                       date_trunc('minute', now()) - interval '1 minute', interval '1 minute') AS m(minute)
  LEFT JOIN (SELECT b.minute, sum(b.runs)::bigint AS ended,
                    (sum(b.runs) FILTER (WHERE b.outcome = 'succeeded'))::bigint AS succeeded,
                    (sum(b.runs) FILTER (WHERE b.outcome IN ('failed', 'timed_out', 'lost')))::bigint AS failed,
                    (sum(b.runs) FILTER (WHERE b.outcome = 'cancelled'))::bigint AS cancelled
               FROM orcheo_dispatch.ended_by_minute AS b
              WHERE b.minute >= date_trunc('minute', now()) - interval '60 minutes'
                AND b.outcome IN ('succeeded', 'failed', 'timed_out', 'lost', 'cancelled')
              GROUP BY 1) AS e ON e.minute = m.minute;

COMMENT ON VIEW orcheo_dispatch.throughput IS 'Runs that ended in each of the last 60 whole minutes; a row a minute.';
COMMENT ON COLUMN orcheo_dispatch.throughput.minute IS 'The minute, by its beginning.';
COMMENT ON COLUMN orcheo_dispatch.throughput.ended IS 'Runs that ended, whatever their outcome.';
COMMENT ON COLUMN orcheo_dispatch.throughput.succeeded IS 'Those that succeeded.';
COMMENT ON COLUMN orcheo_dispatch.throughput.failed IS 'Those that failed, timed out or were lost.';
COMMENT ON COLUMN orcheo_dispatch.throughput.cancelled IS 'Those that were cancelled.';


CREATE OR REPLACE VIEW orcheo_dispatch.workflow_latencies AS
SELECT l.workflow_id, l.runs, l.failed,
       l.pending[1] AS pending_p50_seconds, l.pending[2] AS pending_p95_seconds,
       l.queued[1] AS queued_p50_seconds, l.queued[2] AS queued_p95_seconds,
       l.running[1] AS running_p50_seconds, l.running[2] AS running_p95_seconds, l.running[3] AS running_max_seconds,
       l.total[1] AS total_p50_seconds, l.total[2] AS total_p95_seconds
  FROM (SELECT workflow_id, count(*) AS runs,
               count(*) FILTER (WHERE outcome IN ('failed', 'timed_out', 'lost')) AS failed,
               percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY pending_seconds) AS pending,
               percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY queued_seconds) AS queued,
               percentile_disc(ARRAY[0.5, 0.95, 1]) WITHIN GROUP (ORDER BY running_seconds) AS running,
               percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_seconds) AS total
          FROM (SELECT d.workflow_id, d.outcome,
                       CASE WHEN d.attempts = 1 THEN EXTRACT(epoch FROM d.claimed_at - d.created_at)::float8 END
                           AS pending_seconds,
                       EXTRACT(epoch FROM d.begun_at - d.claimed_at)::float8 AS queued_seconds,
                       EXTRACT(epoch FROM d.settled_at - d.begun_at)::float8 AS running_seconds,
                       EXTRACT(epoch FROM d.settled_at - d.created_at)::float8 AS total_seconds
                  FROM orcheo_dispatch.dispatch AS d
                 WHERE d.state = 'settled' AND d.settled_at > now() - interval '24 hours' AND d.begun_at IS NOT NULL
                   AND d.outcome IN ('succeeded', 'failed', 'timed_out', 'lost', 'cancelled')
                 ORDER BY d.settled_at DESC LIMIT 10000) AS newest
         GROUP BY workflow_id) AS l;

COMMENT ON VIEW orcheo_dispatch.workflow_latencies IS
    'How long the runs of each workflow took: of those that began, the newest 10,000 that ended in the last 24 hours.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.workflow_id IS 'The workflow.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.runs IS 'Runs that ended.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.failed IS 'Those that failed, timed out or were lost.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.pending_p50_seconds IS 'From creation to the first claim: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.pending_p95_seconds IS 'The same: 95 of a hundred took less.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.queued_p50_seconds IS 'From claim to begin: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.queued_p95_seconds IS 'The same: 95 of a hundred took less.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_p50_seconds IS 'From begin to end: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_p95_seconds IS 'The same: 95 of a hundred took less.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.running_max_seconds IS 'The same: the longest.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.total_p50_seconds IS 'From creation to end: median.';
COMMENT ON COLUMN orcheo_dispatch.workflow_latencies.total_p95_seconds IS 'The same: 95 of a hundred took less.';


CREATE OR REPLACE VIEW orcheo_dispatch.slowest_workflows AS
SELECT workflow_id, runs, running_p50_seconds, running_p95_seconds, running_max_seconds
  FROM orcheo_dispatch.workflow_latencies
 ORDER BY running_p95_seconds DESC, workflow_id LIMIT 20;

COMMENT ON VIEW orcheo_dispatch.slowest_workflows IS
    'The 20 workflows whose runs take longest, the slowest first; see workflow_latencies.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.workflow_id IS 'The workflow.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.runs IS 'Runs that ended.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_p50_seconds IS 'From begin to end: median.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_p95_seconds IS 'The same: 95 of a hundred took less.';
COMMENT ON COLUMN orcheo_dispatch.slowest_workflows.running_max_seconds IS 'The same: the longest.';


CREATE OR REPLACE VIEW orcheo_dispatch.failures AS
SELECT f.outcome, COALESCE(f.reason, 'unknown') AS error_class, count(*) AS runs,
       count(DISTINCT f.workflow_id) AS workflows, max(f.settled_at) AS last_at
  FROM (SELECT d.outcome, d.reason, d.workflow_id, d.settled_at FROM orcheo_dispatch.dispatch AS d
         WHERE d.outcome IN ('failed', 'timed_out', 'lost', 'requeued')
           AND d.settled_at > now() - interval '24 hours'
         ORDER BY d.settled_at DESC LIMIT 10000) AS f
 WHERE f.outcome IN ('failed', 'timed_out', 'lost')
 GROUP BY 1, 2;

COMMENT ON VIEW orcheo_dispatch.failures IS
    'Runs that failed in the last 24 hours (the newest 10,000), by outcome and class of error.';
COMMENT ON COLUMN orcheo_dispatch.failures.outcome IS 'failed, timed_out or lost.';
COMMENT ON COLUMN orcheo_dispatch.failures.error_class IS
    'Class of the exception, or timed_out, worker_lost, drained, lease_over, unstorable_output, by hand. Never a text.';
COMMENT ON COLUMN orcheo_dispatch.failures.runs IS 'How many.';
COMMENT ON COLUMN orcheo_dispatch.failures.workflows IS 'Of how many workflows.';
COMMENT ON COLUMN orcheo_dispatch.failures.last_at IS 'When the last one ended.';


CREATE OR REPLACE VIEW orcheo_dispatch.stuck_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.attempts, d.worker_id, d.begun_at, d.heartbeat_at,
       EXTRACT(epoch FROM now() - d.lease_expires_at)::float8 AS overdue_seconds
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.state = 'running' AND d.lease_expires_at < now()
 ORDER BY d.lease_expires_at LIMIT 10000;

COMMENT ON VIEW orcheo_dispatch.stuck_runs IS
    'Runs that are running although the lease of their worker is over: the 10,000 that have been so for longest. A poll ends them, unless ORCHEO_DISPATCH_LOST_RUNS is hold.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.triggered_by IS 'Who asked for it.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.attempts IS 'How often it has begun.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.worker_id IS 'The worker that began it: see processes.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.begun_at IS 'When it began.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.heartbeat_at IS 'When that worker was last heard of.';
COMMENT ON COLUMN orcheo_dispatch.stuck_runs.overdue_seconds IS 'Seconds since its lease ran out.';


CREATE OR REPLACE VIEW orcheo_dispatch.lost_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.outcome, COALESCE(d.reason, 'unknown') AS reason,
       d.attempts, d.worker_id, d.begun_at, d.heartbeat_at, d.settled_at
  FROM orcheo_dispatch.dispatch AS d
 WHERE d.outcome IN ('failed', 'timed_out', 'lost', 'requeued')
   AND (d.outcome = 'lost' OR d.reason = 'worker_lost')
   AND d.settled_at > now() - interval '24 hours'
 ORDER BY d.settled_at DESC LIMIT 1000;

COMMENT ON VIEW orcheo_dispatch.lost_runs IS
    'Runs whose worker was lost in the last 24 hours: the newest 1,000. One that was requeued is here until it is claimed again.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.triggered_by IS 'Who asked for it.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.outcome IS 'lost, or requeued: pending again.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.reason IS 'worker_lost, drained or lease_over.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.attempts IS 'How often it has begun.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.worker_id IS 'The worker that was lost: see processes.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.begun_at IS 'When it began.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.heartbeat_at IS 'When that worker was last heard of.';
COMMENT ON COLUMN orcheo_dispatch.lost_runs.settled_at IS 'When it was given up.';


CREATE OR REPLACE VIEW orcheo_dispatch.running_elsewhere AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.updated_at AS since
  FROM (SELECT a.id, a.workflow_id, a.workspace_id, a.triggered_by, a.updated_at
          FROM workflow_runs AS a WHERE a.status = 'running' LIMIT 25000) AS r
 WHERE NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id AND d.state = 'running');

COMMENT ON VIEW orcheo_dispatch.running_elsewhere IS
    'Runs that are running, but not in a worker of ours: ChatKit''s, or left by another worker. Nobody looks after these.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.triggered_by IS 'Who asked for it.';
COMMENT ON COLUMN orcheo_dispatch.running_elsewhere.since IS 'When the API''s row last changed.';


CREATE OR REPLACE VIEW orcheo_dispatch.processes AS
SELECT p.kind, p.id, p.host, p.pid, p.version, p.concurrency, p.running, p.started_at, p.seen_at,
       EXTRACT(epoch FROM now() - p.seen_at)::float8 AS seen_seconds_ago,
       EXTRACT(epoch FROM p.seen_at - p.started_at)::float8 AS uptime_seconds,
       p.seen_at > now() - interval '30 seconds' AS alive,
       p.kind <> 'beat' AND p.seen_at <= now() - interval '30 seconds' AS vanished
  FROM orcheo_dispatch.process AS p
 WHERE p.seen_at > now() - interval '24 hours';

COMMENT ON VIEW orcheo_dispatch.processes IS
    'Who is alive, and who of the last 24 hours is not and never said goodbye. One that ended in order is not here.';
COMMENT ON COLUMN orcheo_dispatch.processes.kind IS 'beat, dispatcher or worker.';
COMMENT ON COLUMN orcheo_dispatch.processes.id IS 'New at every start.';
COMMENT ON COLUMN orcheo_dispatch.processes.host IS 'Its host.';
COMMENT ON COLUMN orcheo_dispatch.processes.pid IS 'Its process id there.';
COMMENT ON COLUMN orcheo_dispatch.processes.version IS 'The release that it runs.';
COMMENT ON COLUMN orcheo_dispatch.processes.concurrency IS 'Runs that it executes at a time; 1 for beat and dispatcher.';
COMMENT ON COLUMN orcheo_dispatch.processes.running IS 'Runs that it executed when it was last seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.started_at IS 'When it was first seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.seen_at IS 'When it was last seen.';
COMMENT ON COLUMN orcheo_dispatch.processes.seen_seconds_ago IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.processes.uptime_seconds IS 'From started_at to seen_at.';
COMMENT ON COLUMN orcheo_dispatch.processes.alive IS 'Whether it was seen in the last 30 seconds.';
COMMENT ON COLUMN orcheo_dispatch.processes.vanished IS
    'Whether it ceased to be seen without a goodbye: it crashed, was killed, or is cut off. Never of a beat, which says none.';


CREATE OR REPLACE VIEW orcheo_dispatch.queue_and_backlog AS
SELECT b.backlog, GREATEST(b.backlog - l.claimed - l.published, 0) AS unclaimed,
       l.claimed, l.published, l.running, l.stuck, w.workers, w.capacity, s.slots_due
  FROM (SELECT count(*) AS backlog FROM orcheo_dispatch.pending_runs WHERE ours) AS b
 CROSS JOIN (SELECT count(*) FILTER (WHERE state = 'claimed') AS claimed,
                    count(*) FILTER (WHERE state = 'published') AS published,
                    count(*) FILTER (WHERE state = 'running') AS running,
                    count(*) FILTER (WHERE state = 'running' AND lease_expires_at < now()) AS stuck
               FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published', 'running')) AS l
 CROSS JOIN (SELECT count(*) AS workers, COALESCE(sum(concurrency), 0)::bigint AS capacity
               FROM orcheo_dispatch.processes WHERE kind = 'worker' AND alive) AS w
 CROSS JOIN (SELECT count(*) AS slots_due FROM orcheo_dispatch.dispatch WHERE slot = 'due') AS s;

COMMENT ON VIEW orcheo_dispatch.queue_and_backlog IS
    'Where the runs of ours are that have not ended: in the table, in Redis, in a worker. One row.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.backlog IS 'Pending runs that a dispatcher takes, up to 25,000.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.unclaimed IS 'Those that nobody has claimed yet.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.claimed IS 'Claimed, and not published yet.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.published IS
    'Published: their messages wait in Redis, or are with a worker that has not begun.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.running IS 'In a worker.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.stuck IS 'Those of them whose lease is over.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.workers IS 'Workers that are alive.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.capacity IS 'Runs that they execute at a time.';
COMMENT ON COLUMN orcheo_dispatch.queue_and_backlog.slots_due IS 'Run slots that are to be given back.';


CREATE OR REPLACE VIEW orcheo_dispatch.oldest_transactions AS
SELECT t.holder, t.pid, t.name, t.role, t.state, EXTRACT(epoch FROM now() - t.since)::float8 AS seconds, t.xmin_age
  FROM (SELECT 'session' AS holder, a.pid, a.application_name AS name, a.usename::text AS role, a.state,
               a.xact_start AS since,
               GREATEST(age(a.backend_xmin), age(a.backend_xid))::bigint AS xmin_age
          FROM pg_stat_activity AS a
         WHERE (a.datname = current_database() OR a.datid IS NULL OR a.datid = 0) AND a.usename IS NOT NULL
           AND a.pid <> pg_backend_pid() AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL
                                              OR a.xact_start IS NOT NULL)
         UNION ALL
        SELECT 'prepared transaction', NULL, p.gid, p.owner::text, NULL, p.prepared, age(p.transaction)::bigint
          FROM pg_prepared_xacts AS p WHERE p.database = current_database()
         UNION ALL
        SELECT 'replication slot', s.active_pid, s.slot_name::text, NULL, NULL, NULL, age(s.xmin)::bigint
          FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL) AS t
 ORDER BY t.xmin_age DESC NULLS LAST, seconds DESC NULLS LAST LIMIT 20;

COMMENT ON VIEW orcheo_dispatch.oldest_transactions IS
    'What keeps vacuum from removing dead rows, the worst first, 20 at most. Long ones slow each claim down.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.holder IS 'session, prepared transaction or replication slot.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.pid IS 'For pg_terminate_backend; null where there is none.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.name IS 'application_name, gid or slot name.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.role IS 'The role of the session.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.state IS
    'As pg_stat_activity says it; null where the reader is neither of that role nor in pg_read_all_stats.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.seconds IS 'Since when; null as state is.';
COMMENT ON COLUMN orcheo_dispatch.oldest_transactions.xmin_age IS
    'In transactions: how many began since. Everybody may see it.';
