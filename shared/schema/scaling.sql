-- How many workers the load needs.
--
-- Executed by each `migrate`, after views.sql: each statement may be repeated. docs/scaling.md explains the formula.


-- Workers that are needed to begin all that is due within `target_delay` seconds, if each executes `concurrency` runs at
-- a time; null: what workers that are alive execute on average, and 32 if none is alive.
--
--   places  = running + (backlog + retries_due) * min(1, run_seconds / target_delay)
--   workers = ceil(places / concurrency)
--
-- In `target_delay` seconds one place executes target_delay / run_seconds runs one after the other; a run takes one
-- place at most. A run that waits for an answer takes none. Without a history each run takes one place.
--
-- Reads 25,000 pending runs, 25,000 retries and 2,000 settled rows at most, each by an index.
CREATE OR REPLACE FUNCTION orcheo_dispatch.wanted_workers_for(
    target_delay float8 DEFAULT 60,
    concurrency integer DEFAULT NULL
) RETURNS TABLE (workers integer, backlog bigint, retries_due bigint, running bigint, run_seconds float8,
                 runs_per_worker float8, target_delay_seconds float8)
LANGUAGE sql STABLE AS $$
WITH due (backlog, retries_due, running) AS (
    SELECT (SELECT k.pending FROM orcheo_dispatch.pending_kpi AS k),
           (SELECT count(*)
              FROM (SELECT FROM orcheo_dispatch.retry AS t
                     WHERE t.next_at <= now() + make_interval(secs => $1) LIMIT 25000) AS soon),
           (SELECT count(*) FROM orcheo_dispatch.live_runs AS l WHERE l.state = 'running')
), ended (run_seconds) AS (
    -- Those of the last hour; if there are none, the newest.
    SELECT COALESCE(avg(e.seconds) FILTER (WHERE e.settled_at > now() - interval '1 hour'), avg(e.seconds))
      FROM (SELECT n.settled_at, GREATEST(EXTRACT(epoch FROM n.settled_at - n.begun_at)::float8, 0) AS seconds
              FROM (SELECT d.settled_at, d.begun_at, d.outcome FROM orcheo_dispatch.dispatch AS d
                     WHERE d.state = 'settled' ORDER BY d.settled_at DESC LIMIT 2000) AS n
             WHERE n.begun_at IS NOT NULL
               AND n.outcome IN ('succeeded', 'failed', 'timed_out', 'cancelled')) AS e
), worker (runs) AS (
    SELECT GREATEST(COALESCE($2, (SELECT avg(p.concurrency) FROM orcheo_dispatch.processes AS p
                                   WHERE p.kind = 'worker' AND p.alive), 32), 1)::float8
)
-- LEAST ignores the null of a missing history and of a target delay of 0.
SELECT GREATEST(ceil((due.running + (due.backlog + due.retries_due)
                                    * LEAST(1, ended.run_seconds / NULLIF(GREATEST($1, 0), 0)))
                     / worker.runs)::integer,
                LEAST(1, due.running + due.backlog + due.retries_due)::integer),
       due.backlog, due.retries_due, due.running, ended.run_seconds, worker.runs, $1
  FROM due CROSS JOIN ended CROSS JOIN worker
$$;


CREATE OR REPLACE VIEW orcheo_dispatch.wanted_workers AS
SELECT w.workers, w.backlog, w.retries_due, w.running, w.run_seconds, w.runs_per_worker, w.target_delay_seconds
  FROM orcheo_dispatch.wanted_workers_for() AS w;

COMMENT ON FUNCTION orcheo_dispatch.wanted_workers_for(float8, integer) IS
    'Number of workers needed to begin all due runs within target_delay seconds, if each executes concurrency runs at a time.';
COMMENT ON VIEW orcheo_dispatch.wanted_workers IS
    'Number of workers that the load needs to begin all that is due within 60 seconds, and what it is computed from. One row.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.workers IS
    'Number of workers; 0 only if nothing is running, pending or about to be retried.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.backlog IS
    'Pending runs that a dispatcher claims, those that are claimed or published included, up to 25,000.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.retries_due IS
    'Failed runs whose next attempt is due within the target delay, up to 25,000.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.running IS
    'Runs that a worker executes. A run that waits for an answer is not one of them.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.run_seconds IS
    'Mean duration of the newest 2,000 runs that ended in the last hour; if none did, of those that ended before; null if none has ended.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.runs_per_worker IS
    'Mean of the runs that each live worker executes at a time; 32 if no worker is alive.';
COMMENT ON COLUMN orcheo_dispatch.wanted_workers.target_delay_seconds IS
    'Seconds in which all that is due shall begin: see wanted_workers_for.';
