"""Statements of operators: choose runs by a filter, lock them, and cancel, fail, requeue or answer them."""

from __future__ import annotations

from sqlalchemy import text

# The IDs of runs after :after, in order of their ID. A list that is empty, or a value that is null, is no filter. With
# :dead only failed runs that are not tried again, with :waiting only runs that wait for an answer.
CHOOSE_RUNS = text("""
SELECT r.id AS run_id
  FROM workflow_runs AS r
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = r.id
 WHERE r.id > :after
   AND (CAST(:statuses AS text[]) = '{}' OR r.status = ANY (CAST(:statuses AS text[])))
   AND (CAST(:workflow AS text) IS NULL OR r.workflow_id = :workflow)
   AND (CAST(:workspace AS text) IS NULL OR r.workspace_id = :workspace)
   AND (CAST(:error_class AS text) IS NULL OR d.reason = :error_class)
   AND (CAST(:older_than AS float8) IS NULL OR r.created_at < now() - make_interval(secs => :older_than))
   AND r.created_at >= COALESCE(CAST(:since AS timestamptz), now() - make_interval(secs => :since_ago), '-infinity')
   AND (NOT :dead OR (r.status = 'failed' AND d.outcome IN ('failed', 'timed_out', 'lost') AND t.next_at IS NULL))
   AND (NOT :waiting OR (r.status = 'running' AND d.state = 'settled'
                         AND EXISTS (SELECT FROM orcheo_dispatch.question AS q WHERE q.run_id = r.id)))
 ORDER BY r.id
 LIMIT :limit
""")

# How many runs CHOOSE_RUNS would choose without :after and :limit.
COUNT_RUNS = text("""
SELECT count(*)
  FROM workflow_runs AS r
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = r.id
 WHERE (CAST(:statuses AS text[]) = '{}' OR r.status = ANY (CAST(:statuses AS text[])))
   AND (CAST(:workflow AS text) IS NULL OR r.workflow_id = :workflow)
   AND (CAST(:workspace AS text) IS NULL OR r.workspace_id = :workspace)
   AND (CAST(:error_class AS text) IS NULL OR d.reason = :error_class)
   AND (CAST(:older_than AS float8) IS NULL OR r.created_at < now() - make_interval(secs => :older_than))
   AND r.created_at >= COALESCE(CAST(:since AS timestamptz), now() - make_interval(secs => :since_ago), '-infinity')
   AND (NOT :dead OR (r.status = 'failed' AND d.outcome IN ('failed', 'timed_out', 'lost') AND t.next_at IS NULL))
   AND (NOT :waiting OR (r.status = 'running' AND d.state = 'settled'
                         AND EXISTS (SELECT FROM orcheo_dispatch.question AS q WHERE q.run_id = r.id)))
""")

# Lock these runs and their rows in the ledger, and return those that could be locked. REPAIR is a statement of its own,
# because its snapshot must show what others committed before this one had the locks.
LOCK_RUNS = text("""
WITH run AS MATERIALIZED (
    SELECT r.id FROM workflow_runs AS r WHERE r.id = ANY (CAST(:run_ids AS text[]))
     ORDER BY r.id FOR UPDATE SKIP LOCKED
), held AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d JOIN run ON run.id = d.run_id FOR UPDATE OF d SKIP LOCKED
)
SELECT run.id AS run_id
  FROM run
 WHERE run.id IN (SELECT h.run_id FROM held AS h)
    OR NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = run.id)
""")

# As LOCK_RUNS for one run, but wait for whoever has locked it.
AWAIT_RUN = text("""
WITH run AS MATERIALIZED (
    SELECT r.id FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
), held AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d JOIN run ON run.id = d.run_id FOR UPDATE OF d
)
SELECT run.id AS run_id FROM run LEFT JOIN held ON held.run_id = run.id
""")

# Which of these runs exist.
EXISTING_RUNS = text("SELECT r.id AS run_id FROM workflow_runs AS r WHERE r.id = ANY (CAST(:run_ids AS text[]))")

# Cancel, fail or requeue runs on behalf of an operator, as :action says; LOCK_RUNS has locked them in this transaction.
# Refuses a run that a live worker holds, except to cancel it, which its worker notices itself, and a run whose status
# does not allow the action. Returns what was or, with :dry_run, would be done. A run that was never claimed gets its
# row here, so that its slot is returned. A scheduled retry is given up. With :from_start a requeued run does not
# continue after its last checkpoint.
REPAIR = text("""
WITH verdict AS MATERIALIZED (
    SELECT run.id, run.status, run.workflow_id, run.workspace_id, run.triggered_by, held.alive,
           CASE WHEN :action = 'requeue' AND run.status = 'pending' THEN 'run is pending already'
                WHEN :action = 'requeue' AND run.status = 'succeeded' THEN 'run has succeeded'
                WHEN :action = 'requeue' AND waits.run_id IS NOT NULL THEN 'run waits for an answer'
                WHEN :action <> 'requeue' AND run.status NOT IN ('pending', 'running') AND NOT scheduled.retries
                    THEN 'run is ' || run.status
                WHEN :action <> 'cancel' AND held.alive THEN 'its worker is alive: cancel it first' END
               AS refused,
           CASE :action WHEN 'cancel' THEN 'cancelled' WHEN 'fail' THEN 'failed' ELSE 'pending' END AS status_after
      FROM workflow_runs AS run
      LEFT JOIN orcheo_dispatch.question AS waits ON waits.run_id = run.id AND run.status = 'running'
     CROSS JOIN LATERAL (
        SELECT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d
                        WHERE d.run_id = run.id AND d.state = 'running' AND d.lease_expires_at >= now()) AS alive
           ) AS held
     CROSS JOIN LATERAL (
        SELECT run.status = 'failed'
               AND EXISTS (SELECT FROM orcheo_dispatch.retry AS t WHERE t.run_id = run.id AND t.next_at IS NOT NULL)
               AS retries) AS scheduled
     WHERE run.id = ANY (CAST(:run_ids AS text[]))
), moved AS (
    UPDATE workflow_runs AS r
       SET status = v.status_after, updated_at = now(),
           payload = CASE WHEN :action = 'requeue'
               THEN orcheo_dispatch.moved(r.payload, 'pending', 'run_requeued', :actor,
                   jsonb_build_object('reason', CAST(:reason AS text)),
                   jsonb_build_object('started_at', NULL, 'completed_at', NULL, 'error', NULL))
               ELSE orcheo_dispatch.moved(r.payload, v.status_after, 'run_' || v.status_after, :actor,
                   jsonb_build_object(CASE :action WHEN 'fail' THEN 'error' ELSE 'reason' END, CAST(:reason AS text)),
                   jsonb_build_object('error', CAST(:reason AS text),
                                      'completed_at', orcheo_dispatch.iso(now()))) END
      FROM verdict AS v
     WHERE r.id = v.id AND v.refused IS NULL AND NOT :dry_run
), settled AS (
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at,
            dispatcher_id, reason)
    SELECT v.id, v.workflow_id, v.workspace_id, v.triggered_by, 'settled',
           CASE :action WHEN 'cancel' THEN 'cancelled' WHEN 'fail' THEN 'failed' ELSE 'requeued' END, 1,
           CASE WHEN v.workspace_id IS NULL THEN 'none' WHEN :action = 'requeue' THEN 'held' ELSE 'due' END,
           now(), now(), '00000000-0000-0000-0000-000000000000', 'by hand'
      FROM verdict AS v
     WHERE v.refused IS NULL AND NOT v.alive AND NOT :dry_run
        ON CONFLICT (run_id) DO UPDATE
       SET state = 'settled', outcome = EXCLUDED.outcome, settled_at = now(), lease_expires_at = NULL,
           reason = EXCLUDED.reason,
           attempts = CASE WHEN :action = 'requeue' THEN 0 ELSE d.attempts END,
           refunded = CASE WHEN :action = 'requeue' THEN 0 ELSE d.refunded END,
           slot = CASE WHEN :action <> 'requeue' AND d.slot = 'held' THEN 'due' ELSE d.slot END
    RETURNING d.run_id
), retry AS (
    -- No retry is scheduled any more; what the policy allows counts anew after a requeue.
    INSERT INTO orcheo_dispatch.retry AS t (run_id, start_over_from)
    SELECT s.run_id, CASE WHEN :from_start THEN orcheo_dispatch.last_checkpoint(s.run_id) END
      FROM settled AS s
     WHERE :from_start OR EXISTS (SELECT FROM orcheo_dispatch.retry AS k WHERE k.run_id = s.run_id)
        ON CONFLICT (run_id) DO UPDATE
       SET next_at = NULL, start_over_from = EXCLUDED.start_over_from,
           retries = CASE WHEN :action = 'requeue' THEN 0 ELSE t.retries END
)
SELECT v.id AS run_id, v.workflow_id, v.workspace_id, v.status AS status_before, v.status_after, v.refused
  FROM verdict AS v ORDER BY v.id
""")

# Give runs that wait at an interrupt the same answer; LOCK_RUNS has locked them in this transaction. Refuses what the
# function `answer` would refuse, so that no run of the batch stops the others. Returns what was or, with :dry_run,
# would be done.
ANSWER = text("""
WITH verdict AS MATERIALIZED (
    SELECT run.id, run.status, run.workflow_id, run.workspace_id,
           CASE WHEN q.run_id IS NULL OR run.status <> 'running' OR d.state <> 'settled'
                    THEN 'run does not wait for an answer'
                WHEN q.interrupts > 1 AND jsonb_typeof(CAST(:answer AS jsonb)) <> 'object'
                    THEN 'run waits for ' || q.interrupts
                         || ' answers: expected an object with the id of each interrupt as key' END AS refused
      FROM workflow_runs AS run
      LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = run.id
      LEFT JOIN orcheo_dispatch.question AS q ON q.run_id = run.id
     WHERE run.id = ANY (CAST(:run_ids AS text[]))
), answered AS MATERIALIZED (
    SELECT v.id, orcheo_dispatch.answer(v.id, CAST(:answer AS jsonb), :actor)
      FROM verdict AS v WHERE v.refused IS NULL AND NOT :dry_run
)
SELECT v.id AS run_id, v.workflow_id, v.workspace_id, v.status AS status_before, 'pending' AS status_after, v.refused
  FROM verdict AS v LEFT JOIN answered AS a ON a.id = v.id ORDER BY v.id
""")
