-- Runs that wait for something other than a worker: for their next attempt, or for a person's answer.
--
-- Executed by each `migrate`, after the migrations and before views.sql: each statement may be repeated. No revision
-- creates these tables, so that processes of the last release still start.


-- How often a failed run has been tried again, and when it is next. The run is 'failed' until then.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.retry (
    run_id          text PRIMARY KEY REFERENCES orcheo_dispatch.dispatch (run_id) ON DELETE CASCADE,
    -- Retries that were scheduled so far.
    retries         integer NOT NULL DEFAULT 0 CHECK (retries >= 0),
    -- null: none is scheduled.
    next_at         timestamptz,
    -- The last checkpoint when it was decided that the run starts over: while it is still the last one, the run starts
    -- from the beginning. null: the run continues after its last checkpoint.
    start_over_from text
);
COMMENT ON TABLE orcheo_dispatch.retry IS 'Failed runs that were tried again, and when they are tried next.';
CREATE INDEX IF NOT EXISTS retry_due ON orcheo_dispatch.retry (next_at) WHERE next_at IS NOT NULL;


-- Runs that stopped at an interrupt and wait for an answer. The run is 'running' until then, and no worker holds it.
-- Neither the question nor the answer is here: both are in LangGraph's checkpoint_writes.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.question (
    run_id        text PRIMARY KEY REFERENCES orcheo_dispatch.dispatch (run_id) ON DELETE CASCADE,
    -- The checkpoint at which the run was interrupted.
    checkpoint_id text NOT NULL,
    -- How many interrupts wait for an answer: parallel branches may ask at the same time.
    interrupts    integer NOT NULL CHECK (interrupts > 0),
    asked_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE orcheo_dispatch.question IS 'Runs that stopped at an interrupt and wait for an answer.';


-- Seconds until a failed run of this workflow is tried again, after so many retries; null if its retry policy, which the
-- API stores, allows no more. Computed as Orcheo's RetryPolicyConfig does. A policy that cannot be read allows none: the
-- end of a run must not fail because of it.
CREATE OR REPLACE FUNCTION orcheo_dispatch.retry_delay(of_workflow text, retries integer) RETURNS float8
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    policy jsonb;
    delay  float8;
BEGIN
    IF to_regclass('retry_policies') IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE 'SELECT config FROM retry_policies WHERE workflow_id = $1' INTO policy USING of_workflow;
    IF policy IS NULL OR retries + 1 >= COALESCE((policy ->> 'max_attempts')::numeric, 3) THEN
        RETURN NULL;
    END IF;
    delay := COALESCE((policy ->> 'initial_delay_seconds')::float8, 30)
             * power(COALESCE((policy ->> 'backoff_factor')::float8, 2), LEAST(retries, 100));
    IF policy ->> 'max_delay_seconds' IS NOT NULL OR NOT policy ? 'max_delay_seconds' THEN
        delay := LEAST(delay, COALESCE((policy ->> 'max_delay_seconds')::float8, 300));
    END IF;
    delay := delay + delay * COALESCE((policy ->> 'jitter_factor')::float8, 0.1) * (2 * random() - 1);
    RETURN GREATEST(0, LEAST(delay, 31536000));
EXCEPTION WHEN data_exception OR syntax_error_or_access_rule_violation THEN
    RETURN NULL;
END $$;


-- The last checkpoint of a run's own graph; null if there is none.
CREATE OR REPLACE FUNCTION orcheo_dispatch.last_checkpoint(of_run text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found text;
BEGIN
    IF to_regclass('checkpoints') IS NOT NULL THEN
        EXECUTE 'SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = $1 AND checkpoint_ns = '''''
           INTO found USING of_run;
    END IF;
    RETURN found;
END $$;


-- Answer a run that waits at an interrupt: it becomes pending, and continues with this answer. If several interrupts
-- wait, the answer is an object with the ID of each as key. Raises an error if the run does not wait for an answer.
--
-- The answer is stored where LangGraph's Command(resume=...) stores it, for the checkpoint at which the run stopped; so
-- no later interrupt can receive it.
CREATE OR REPLACE FUNCTION orcheo_dispatch.answer(of_run text, answer jsonb, by text DEFAULT session_user) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    asked record;
BEGIN
    SELECT q.checkpoint_id, q.interrupts, r.status INTO asked
      FROM workflow_runs AS r
      JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
      JOIN orcheo_dispatch.question AS q ON q.run_id = r.id
     WHERE r.id = of_run AND d.state = 'settled'
       FOR UPDATE OF r, d, q;
    IF NOT FOUND OR asked.status <> 'running' THEN
        RAISE EXCEPTION USING MESSAGE = 'run ' || of_run || ' does not wait for an answer',
                              ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF asked.interrupts > 1 AND jsonb_typeof(answer) <> 'object' THEN
        RAISE EXCEPTION USING MESSAGE = 'run ' || of_run || ' waits for ' || asked.interrupts
                                        || ' answers: expected an object with the ID of each interrupt as key',
                              ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO checkpoint_writes
           (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    VALUES (of_run, '', asked.checkpoint_id, '00000000-0000-0000-0000-000000000000', '', -4, '__resume__', 'json',
            convert_to(answer::text, 'UTF8'))
        ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
        DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob;
    UPDATE workflow_runs AS r
       SET status = 'pending', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'pending', 'run_answered', by, '{"reason": "Answered."}',
                                           '{"started_at": null, "output_payload": null}')
     WHERE r.id = of_run;
    UPDATE orcheo_dispatch.dispatch AS d SET refunded = d.attempts, reason = 'answered' WHERE d.run_id = of_run;
    DELETE FROM orcheo_dispatch.question AS q WHERE q.run_id = of_run;
END $$;


CREATE OR REPLACE VIEW orcheo_dispatch.retrying_runs AS
SELECT t.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.reason AS error_class, t.retries,
       d.settled_at AS failed_at, t.next_at, EXTRACT(epoch FROM t.next_at - now())::float8 AS seconds_left
  FROM orcheo_dispatch.retry AS t
  JOIN orcheo_dispatch.dispatch AS d ON d.run_id = t.run_id
 WHERE t.next_at IS NOT NULL
 ORDER BY t.next_at LIMIT 10000;

COMMENT ON VIEW orcheo_dispatch.retrying_runs IS
    'Failed runs that are tried again, because the retry policy of their workflow allows it: the next 10,000.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.error_class IS 'Class of the last error. Never an error text.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.retries IS 'Number of retries, with the one that is scheduled.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.failed_at IS 'Time at which it failed last.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.next_at IS 'Time of the next attempt.';
COMMENT ON COLUMN orcheo_dispatch.retrying_runs.seconds_left IS 'Seconds until then; negative if it is due.';


CREATE OR REPLACE VIEW orcheo_dispatch.dead_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.outcome, d.reason AS error_class, d.attempts,
       COALESCE(t.retries, 0) AS retries, d.settled_at AS failed_at
  FROM orcheo_dispatch.dispatch AS d
  JOIN workflow_runs AS r ON r.id = d.run_id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = d.run_id
 WHERE d.state = 'settled' AND d.outcome IN ('failed', 'timed_out', 'lost') AND r.status = 'failed'
   AND t.next_at IS NULL
 ORDER BY d.settled_at DESC LIMIT 10000;

COMMENT ON VIEW orcheo_dispatch.dead_runs IS
    'Failed runs that are not tried again: the newest 10,000 that the ledger still has. See orcheo-dispatch requeue --dead.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.outcome IS 'failed, timed_out or lost.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.error_class IS
    'Class of the error, or the reason why the run was given up. Never an error text.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.attempts IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.retries IS 'Number of them that were retries of the workflow''s policy.';
COMMENT ON COLUMN orcheo_dispatch.dead_runs.failed_at IS 'Time at which it failed.';


CREATE OR REPLACE VIEW orcheo_dispatch.waiting_runs AS
SELECT q.run_id, d.workflow_id, d.workspace_id, d.triggered_by, q.interrupts, q.asked_at,
       EXTRACT(epoch FROM now() - q.asked_at)::float8 AS waiting_seconds, d.slot = 'held' AS holds_slot
  FROM orcheo_dispatch.question AS q
  JOIN orcheo_dispatch.dispatch AS d ON d.run_id = q.run_id
  JOIN workflow_runs AS r ON r.id = q.run_id AND r.status = 'running'
 WHERE d.state = 'settled'
 ORDER BY q.asked_at LIMIT 10000;

COMMENT ON VIEW orcheo_dispatch.waiting_runs IS
    'Runs that stopped at an interrupt and wait for an answer: the 10,000 that wait the longest. See orcheo-dispatch answer.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.interrupts IS 'Number of interrupts that wait for an answer.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.asked_at IS 'Time at which it stopped.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.waiting_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.waiting_runs.holds_slot IS
    'Whether it keeps its run slot: ORCHEO_DISPATCH_INTERRUPTED_RUNS.';


CREATE OR REPLACE VIEW orcheo_dispatch.resumed_runs AS
SELECT d.run_id, d.workflow_id, d.workspace_id, d.triggered_by, d.state, d.outcome, d.attempts AS begins, d.refunded,
       COALESCE(t.retries, 0) AS retries, d.reason, d.worker_id, d.begun_at, d.settled_at
  FROM (SELECT l.run_id, l.workflow_id, l.workspace_id, l.triggered_by, l.state, l.outcome, l.attempts, l.refunded,
               l.reason, l.worker_id, l.begun_at, l.settled_at
          FROM orcheo_dispatch.dispatch AS l
         WHERE l.state IN ('claimed', 'published', 'running') AND l.attempts > 0
           AND (l.attempts > 1 OR l.state <> 'running')
         UNION ALL
        (SELECT s.run_id, s.workflow_id, s.workspace_id, s.triggered_by, s.state, s.outcome, s.attempts, s.refunded,
                s.reason, s.worker_id, s.begun_at, s.settled_at
           FROM orcheo_dispatch.dispatch AS s
          WHERE s.state = 'settled' AND s.settled_at > now() - interval '24 hours'
            AND (s.attempts > 1 OR (s.attempts = 1 AND s.outcome = 'requeued'))
          ORDER BY s.settled_at DESC LIMIT 1000)) AS d
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = d.run_id;

COMMENT ON VIEW orcheo_dispatch.resumed_runs IS
    'Runs that begin again: they continue on another worker, are retried, or were requeued. Those in progress, and the newest 1,000 that settled in the last 24 hours.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.run_id IS 'ID of the run.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.workflow_id IS 'ID of its workflow.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.workspace_id IS 'ID of its workspace; null if it has none.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.triggered_by IS 'Label of the trigger.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.state IS 'claimed, published, running or settled.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.outcome IS 'How the last claim ended; null if it has not. requeued: it is to begin again.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.begins IS 'Number of times it has begun.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.refunded IS 'Number of them that do not count as attempts.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.retries IS 'Number of them that were retries of the workflow''s policy.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.reason IS
    'Why the last claim ended, such as worker_lost or requeued, or the class of the error. Never an error text.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.worker_id IS 'ID of the worker that began it last: see processes.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.begun_at IS 'Time at which it began last.';
COMMENT ON COLUMN orcheo_dispatch.resumed_runs.settled_at IS 'Time at which the last claim ended; null if it has not.';
