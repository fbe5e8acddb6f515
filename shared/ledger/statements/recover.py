"""Reap lost runs, retry failed ones, return slots, prune old rows, and count ended claims for dashboards.

A statement that chooses its rows itself never chooses those in :skipped and, if :chosen is given, only those in it.
With :choose it only locks the rows and returns their ids. So a change that Postgres refuses for one row is made for all
others.
"""

from sqlalchemy import text

# End or requeue the runs whose lease expired without a heartbeat. Run and row are locked with SKIP LOCKED: a worker
# that is currently sending a heartbeat or settling is alive. For one lease after Postgres starts no run counts as lost:
# no worker could send heartbeats during the outage. Under 'hold' only the rows of runs that the API has ended are
# settled.
REAP = text("""
WITH lost AS MATERIALIZED (
    SELECT d.run_id, d.fence, r.status,
           CASE WHEN r.status <> 'running' THEN 'keep'
                WHEN rule.policy = 'requeue' AND d.attempts - d.refunded < :max_attempts THEN 'requeue'
                ELSE 'fail' END AS verdict,
           'Worker lost: no heartbeat since ' || orcheo_dispatch.iso(d.heartbeat_at)
               || CASE WHEN rule.policy = 'requeue'
                       THEN COALESCE(' from ' || p.host || ', process ' || p.pid, '')
                            || ', attempt ' || (d.attempts - d.refunded) || ' of ' || :max_attempts
                       ELSE '' END AS error
      FROM orcheo_dispatch.dispatch AS d
      JOIN workflow_runs AS r ON r.id = d.run_id
      LEFT JOIN orcheo_dispatch.process AS p ON p.id = d.worker_id
     -- What operators decided for its workflow, else the setting; a run that resumes is requeued.
     CROSS JOIN LATERAL (
        SELECT CASE o.decided WHEN 'resume' THEN 'requeue' ELSE COALESCE(o.decided, :policy) END AS policy
          FROM (SELECT CASE WHEN EXISTS (SELECT FROM orcheo_dispatch.policy AS q WHERE q.lost_runs IS NOT NULL)
                            THEN orcheo_dispatch.policy_of(d.workspace_id, d.workflow_id) ->> 'lost_runs' END
                           AS decided) AS o) AS rule
     WHERE d.state = 'running' AND d.lease_expires_at < now()
       AND pg_postmaster_start_time() < now() - make_interval(secs => :lease)
       AND (rule.policy <> 'hold' OR r.status <> 'running')
       AND NOT d.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR d.run_id = ANY (CAST(:chosen AS text[])))
     ORDER BY d.lease_expires_at
     LIMIT :batch
       FOR UPDATE OF r, d SKIP LOCKED
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, reason = 'worker_lost',
           outcome = CASE WHEN l.verdict = 'requeue' THEN 'requeued' WHEN l.verdict = 'fail' THEN 'lost'
                          WHEN l.status = 'cancelled' THEN 'cancelled' ELSE 'skipped' END,
           slot = CASE WHEN d.slot = 'held' AND l.verdict <> 'requeue' AND l.status <> 'pending' THEN 'due'
                       ELSE d.slot END
      FROM lost AS l
     WHERE d.run_id = l.run_id AND d.fence = l.fence AND d.state = 'running' AND NOT :choose
    RETURNING d.run_id, d.fence, d.outcome, d.worker_id, d.workflow_id, l.verdict, l.error
), ended AS (
    UPDATE workflow_runs AS r
       SET status = CASE WHEN s.verdict = 'requeue' THEN 'pending' ELSE 'failed' END, updated_at = now(),
           payload = CASE WHEN s.verdict = 'requeue'
               THEN orcheo_dispatch.moved(r.payload, 'pending', 'run_requeued', :actor,
                   jsonb_build_object('reason', s.error), jsonb_build_object('started_at', NULL))
               ELSE orcheo_dispatch.moved(r.payload, 'failed', 'run_failed', :actor,
                   jsonb_build_object('error', s.error),
                   jsonb_build_object('error', s.error, 'completed_at', orcheo_dispatch.iso(now()))) END
      FROM settled AS s
     WHERE r.id = s.run_id AND r.status = 'running' AND s.verdict IN ('fail', 'requeue')
)
SELECT l.run_id, s.fence, s.outcome, s.worker_id, s.workflow_id
  FROM lost AS l LEFT JOIN settled AS s ON s.run_id = l.run_id
 WHERE :choose OR s.run_id IS NOT NULL
""")

# Make failed runs pending again whose next attempt is due; with :from_start, or where operators decided so, they start
# from the beginning. A run that is no longer failed, or that the API has deleted, is not tried again. Attempts that
# were lost are counted anew.
RETRY = text("""
WITH known AS MATERIALIZED (
    SELECT t.run_id, r.status = 'failed' AND d.state = 'settled' AS failed,
           COALESCE(CASE WHEN EXISTS (SELECT FROM orcheo_dispatch.policy AS q WHERE q.retries IS NOT NULL)
                         THEN orcheo_dispatch.policy_of(d.workspace_id, d.workflow_id) ->> 'retries' END,
                    CASE WHEN :from_start THEN 'start' END) AS rule
      FROM orcheo_dispatch.retry AS t
      JOIN workflow_runs AS r ON r.id = t.run_id
      JOIN orcheo_dispatch.dispatch AS d ON d.run_id = t.run_id
     WHERE t.next_at <= now()
       AND NOT t.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR t.run_id = ANY (CAST(:chosen AS text[])))
     ORDER BY t.next_at
     LIMIT :batch
       FOR UPDATE OF r, d, t SKIP LOCKED
), deleted AS MATERIALIZED (
    SELECT t.run_id FROM orcheo_dispatch.retry AS t
     WHERE t.next_at <= now() AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = t.run_id)
       AND NOT t.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR t.run_id = ANY (CAST(:chosen AS text[])))
     LIMIT :batch
       FOR UPDATE OF t SKIP LOCKED
), due AS (
    SELECT k.run_id, k.failed, COALESCE(k.rule = 'start', false) AS from_start FROM known AS k
     UNION ALL
    SELECT e.run_id, false, false FROM deleted AS e
), tried AS (
    UPDATE orcheo_dispatch.retry AS t
       SET next_at = NULL,
           start_over_from = CASE WHEN u.failed AND u.from_start THEN orcheo_dispatch.last_checkpoint(t.run_id) END
      FROM due AS u WHERE t.run_id = u.run_id AND NOT :choose
    RETURNING t.run_id, t.retries, u.failed
), counted AS (
    UPDATE orcheo_dispatch.dispatch AS d SET outcome = 'requeued', reason = 'retry', refunded = d.attempts
      FROM tried AS t WHERE d.run_id = t.run_id AND t.failed
), pending AS (
    UPDATE workflow_runs AS r
       SET status = 'pending', updated_at = now(),
           payload = orcheo_dispatch.moved(r.payload, 'pending', 'run_retried', :actor,
               jsonb_build_object('reason', 'Retry ' || t.retries || ' of the workflow''s policy.'),
               jsonb_build_object('started_at', NULL, 'completed_at', NULL, 'error', NULL))
      FROM tried AS t WHERE r.id = t.run_id AND t.failed AND r.status = 'failed'
)
SELECT u.run_id, t.retries FROM due AS u LEFT JOIN tried AS t ON t.run_id = u.run_id
 WHERE :choose OR t.failed
""")

# Forget the questions of runs that no longer wait: an operator or the API has ended them. Their slots become due.
FORGET_QUESTIONS = text("""
WITH ended AS MATERIALIZED (
    SELECT q.run_id FROM orcheo_dispatch.question AS q
      JOIN workflow_runs AS r ON r.id = q.run_id
      JOIN orcheo_dispatch.dispatch AS d ON d.run_id = q.run_id
     WHERE r.status NOT IN ('running', 'pending') AND d.state = 'settled'
       AND NOT q.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR q.run_id = ANY (CAST(:chosen AS text[])))
     LIMIT :batch
       FOR UPDATE OF q, d SKIP LOCKED
), forgotten AS (
    DELETE FROM orcheo_dispatch.question AS q USING ended AS e WHERE q.run_id = e.run_id AND NOT :choose
), due AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET outcome = 'cancelled', reason = 'cancelled', settled_at = now(),
           slot = CASE WHEN d.slot = 'held' THEN 'due' ELSE d.slot END
      FROM ended AS e WHERE d.run_id = e.run_id AND d.outcome = 'requeued' AND NOT :choose
)
SELECT e.run_id FROM ended AS e
""")

# Settle the rows of runs that were deleted from the API's table.
REAP_ORPHANS = text("""
WITH orphan AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d
     WHERE d.state IN ('claimed', 'published', 'running') AND d.lease_expires_at < now()
       AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = d.run_id)
       AND NOT d.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR d.run_id = ANY (CAST(:chosen AS text[])))
     ORDER BY d.lease_expires_at
     LIMIT :batch
       FOR UPDATE OF d SKIP LOCKED
), settled AS (
    UPDATE orcheo_dispatch.dispatch AS d
       SET state = 'settled', settled_at = now(), lease_expires_at = NULL, outcome = 'skipped', reason = 'run is gone',
           slot = CASE WHEN d.slot = 'held' THEN 'due' ELSE d.slot END
      FROM orphan AS o WHERE d.run_id = o.run_id AND NOT :choose
)
SELECT o.run_id FROM orphan AS o
""")

# Runs that the API cancelled before they were claimed, or after their claim was released or they were requeued.
# The API took a slot for each of them and does not return it.
ADOPT_CANCELLED = text("""
WITH cancelled AS MATERIALIZED (
    SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by,
           EXISTS (SELECT FROM orcheo_dispatch.dispatch AS a WHERE a.run_id = r.id) AS in_ledger
      FROM workflow_runs AS r
     WHERE r.status = 'cancelled' AND r.workspace_id IS NOT NULL
       AND r.updated_at > now() - make_interval(secs => :younger_than)
       AND r.payload ->> 'started_at' IS NULL
       AND (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[]))
            OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS a WHERE a.run_id = r.id), false))
       AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d
                        WHERE d.run_id = r.id AND NOT (d.state = 'settled' AND d.slot = 'held'))
       AND NOT r.id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR r.id = ANY (CAST(:chosen AS text[])))
     LIMIT :batch
), free_row AS MATERIALIZED (
    SELECT d.run_id
      FROM cancelled AS c
     CROSS JOIN LATERAL (
        SELECT l.run_id FROM orcheo_dispatch.dispatch AS l WHERE l.run_id = c.run_id FOR UPDATE SKIP LOCKED) AS d
     WHERE c.in_ledger
), adopted AS (
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at,
            dispatcher_id, reason)
    SELECT c.run_id, c.workflow_id, c.workspace_id, c.triggered_by, 'settled', 'cancelled', 1, 'due', now(), now(),
           CAST(:dispatcher_id AS uuid), 'never claimed'
      FROM cancelled AS c
     WHERE NOT :choose AND (NOT c.in_ledger OR c.run_id IN (SELECT f.run_id FROM free_row AS f))
        ON CONFLICT (run_id) DO UPDATE
       SET outcome = 'cancelled', slot = 'due', settled_at = now(), reason = 'never claimed again'
     WHERE d.state = 'settled' AND d.slot = 'held'
    RETURNING d.run_id
)
SELECT c.run_id FROM cancelled AS c LEFT JOIN adopted AS a ON a.run_id = c.run_id WHERE :choose OR a.run_id IS NOT NULL
""")

# Slots of ended runs that have been due for a while: the worker died before it returned them.
SLOTS_DUE = text("""
SELECT d.run_id, d.workspace_id FROM orcheo_dispatch.dispatch AS d
 WHERE d.slot = 'due' AND d.settled_at < now() - make_interval(secs => :older_than)
   AND NOT d.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
 ORDER BY d.settled_at
 LIMIT :batch
""")

# A row that another session has locked stays due: its slot is returned once more, which has no effect.
SLOTS_RETURNED = text("""
WITH held AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d
     WHERE d.run_id = ANY (CAST(:run_ids AS text[])) AND d.slot = 'due'
     ORDER BY d.run_id FOR UPDATE OF d SKIP LOCKED
)
UPDATE orcheo_dispatch.dispatch AS d SET slot = 'returned' FROM held AS h WHERE d.run_id = h.run_id
RETURNING d.run_id
""")

# Delete old settled rows, but keep those of pending or running runs, because of the fence, those whose slot is due, and
# those of runs that are tried again.
PRUNE = text("""
WITH old AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d
     WHERE d.state = 'settled' AND d.settled_at < now() - make_interval(secs => :retention) AND d.slot <> 'due'
       AND NOT EXISTS (SELECT FROM workflow_runs AS r WHERE r.id = d.run_id AND r.status IN ('pending', 'running'))
       AND NOT EXISTS (SELECT FROM orcheo_dispatch.retry AS t WHERE t.run_id = d.run_id AND t.next_at IS NOT NULL)
       AND NOT d.run_id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR d.run_id = ANY (CAST(:chosen AS text[])))
     ORDER BY d.settled_at
     LIMIT :batch
       FOR UPDATE OF d SKIP LOCKED
), deleted AS (
    DELETE FROM orcheo_dispatch.dispatch AS d USING old AS o WHERE d.run_id = o.run_id AND NOT :choose
)
SELECT o.run_id FROM old AS o
""")

# Close the traces of ended runs whose worker cannot: add an error step, as Orcheo's worker does, and end the record.
CLOSE_TRACES = text("""
WITH open_trace AS MATERIALIZED (
    SELECT h.execution_id, r.payload ->> 'error' AS error,
           CASE r.status WHEN 'cancelled' THEN 'cancelled' ELSE 'error' END AS status
      FROM execution_history AS h JOIN workflow_runs AS r ON r.id = h.execution_id
     WHERE h.execution_id = ANY (CAST(:run_ids AS text[])) AND h.status = 'running'
       AND r.status IN ('failed', 'cancelled')
     ORDER BY h.execution_id
       FOR UPDATE OF h SKIP LOCKED
), step AS (
    INSERT INTO execution_history_steps (execution_id, step_index, at, payload)
    SELECT o.execution_id,
           (SELECT COALESCE(max(s.step_index), -1) + 1 FROM execution_history_steps AS s
             WHERE s.execution_id = o.execution_id),
           now(),
           jsonb_build_object('status', o.status, CASE o.status WHEN 'error' THEN 'error' ELSE 'reason' END, o.error)
      FROM open_trace AS o
        ON CONFLICT (execution_id, step_index) DO NOTHING
)
UPDATE execution_history AS h
   SET status = o.status, error = o.error, completed_at = now(), trace_completed_at = now(), trace_last_span_at = now()
  FROM open_trace AS o
 WHERE h.execution_id = o.execution_id
RETURNING h.execution_id
""")

# Count the final minutes that were not counted yet, at most six hours of them, so that the statement is always short.
# Two dispatchers that count the same minute insert the same rows in the same order, so that they cannot deadlock. A
# minute is final after two more minutes: until then a transaction that began in it may still settle runs in it. No
# statement of ours takes that long.
COUNT_ENDED = text("""
WITH next AS (
    SELECT min(d.settled_at) AS at FROM orcheo_dispatch.dispatch AS d
     WHERE d.state = 'settled'
       AND d.settled_at >= (SELECT COALESCE(max(e.minute) + interval '1 minute', '-infinity')
                              FROM orcheo_dispatch.ended AS e)
), span AS (
    SELECT date_trunc('minute', n.at) AS since,
           LEAST(date_trunc('minute', n.at) + interval '6 hours', date_trunc('minute', now() - interval '2 minutes'))
               AS until
      FROM next AS n
)
INSERT INTO orcheo_dispatch.ended (minute, outcome, runs)
SELECT date_bin('1 minute', d.settled_at, '2000-01-01 00:00+00'), d.outcome, count(*)
  FROM span AS s JOIN orcheo_dispatch.dispatch AS d
    ON d.state = 'settled' AND d.settled_at >= s.since AND d.settled_at < s.until
 GROUP BY 1, 2
 ORDER BY 1, 2
    ON CONFLICT (minute, outcome) DO NOTHING
""")

# The views of dashboards show a month.
PRUNE_ENDED = text("DELETE FROM orcheo_dispatch.ended WHERE minute < now() - interval '31 days'")
