"""Statements of operators: cancel, fail or requeue a run."""

from __future__ import annotations

from sqlalchemy import text

# Cancel, fail or requeue one run on behalf of an operator, as :action says. Refuses a run that a live worker holds,
# except to cancel it, which its worker notices itself, and a run whose status does not allow the action. Returns what
# was or, with :dry_run, would be done. A run that was never claimed gets its row here, so that its slot is returned. A
# scheduled retry is given up. With :from_start a requeued run does not continue after its last checkpoint.
REPAIR = text("""
WITH run AS MATERIALIZED (
    SELECT r.id, r.status, r.workflow_id, r.workspace_id, r.triggered_by
      FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE
), held AS MATERIALIZED (
    SELECT d.run_id FROM orcheo_dispatch.dispatch AS d JOIN run ON run.id = d.run_id
     WHERE d.state = 'running' AND d.lease_expires_at >= now()
       FOR UPDATE OF d
), verdict AS (
    SELECT run.*, held.run_id IS NOT NULL AS alive,
           CASE WHEN :action = 'requeue' AND run.status = 'pending' THEN 'run is pending already'
                WHEN :action = 'requeue' AND run.status = 'succeeded' THEN 'run has succeeded'
                WHEN :action = 'requeue' AND waits.run_id IS NOT NULL THEN 'run waits for an answer'
                WHEN :action <> 'requeue' AND run.status NOT IN ('pending', 'running') AND NOT retries
                    THEN 'run is ' || run.status
                WHEN :action <> 'cancel' AND held.run_id IS NOT NULL THEN 'its worker is alive: cancel it first' END
               AS refused,
           CASE :action WHEN 'cancel' THEN 'cancelled' WHEN 'fail' THEN 'failed' ELSE 'pending' END AS status_after
      FROM run
      LEFT JOIN held ON held.run_id = run.id
      LEFT JOIN orcheo_dispatch.question AS waits ON waits.run_id = run.id AND run.status = 'running'
     CROSS JOIN LATERAL (
        SELECT run.status = 'failed'
               AND EXISTS (SELECT FROM orcheo_dispatch.retry AS t WHERE t.run_id = run.id AND t.next_at IS NOT NULL)
               AS retries) AS scheduled
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
SELECT v.status AS status_before, v.status_after, v.refused FROM verdict AS v
""")
