"""Admit runs whose label is not on the allow-list, because the API asked a worker to execute them.

Such a run gets a ledger row as if a claim on it had been released. Claims take every pending run that has such a row.
"""

from sqlalchemy import text

# A push admits the run only if it names the run's workspace: Orcheo's worker finds no other run either.
# Returns a row per push. The order of the inserts prevents deadlocks of dispatchers that got the same pushes.
ADMIT_PUSHED = text("""
WITH push AS (
    SELECT p.run_id, p.workspace_id
      FROM unnest(CAST(:run_ids AS text[]), CAST(:workspace_ids AS text[])) AS p(run_id, workspace_id)
), run AS MATERIALIZED (
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at, p.workspace_id AS named,
           r.status = 'pending'
               AND NOT ((:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
                        AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)) AS unlisted,
           r.workspace_id IS NOT DISTINCT FROM p.workspace_id AS same_workspace
      FROM push AS p JOIN workflow_runs AS r ON r.id = p.run_id
), admitted AS (
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at,
            dispatcher_id, reason, created_at)
    SELECT r.id, r.workflow_id, r.workspace_id, r.triggered_by, 'settled', 'released', 1,
           CASE WHEN r.workspace_id IS NULL THEN 'none' ELSE 'held' END, now(), now(),
           CAST(:dispatcher_id AS uuid), 'pushed', r.created_at
      FROM run AS r WHERE r.unlisted AND r.same_workspace
     ORDER BY r.id
        ON CONFLICT (run_id) DO NOTHING
    RETURNING d.run_id
)
SELECT p.run_id, p.workspace_id, r.id IS NOT NULL AS known,
       COALESCE(r.same_workspace AND EXISTS (SELECT FROM admitted AS a WHERE a.run_id = r.id), false) AS admitted,
       COALESCE(r.unlisted AND NOT r.same_workspace, false) AS refused
  FROM push AS p LEFT JOIN run AS r ON r.id = p.run_id AND r.named IS NOT DISTINCT FROM p.workspace_id
""")

# Runs whose pushes Redis lost. The API pushes each run of a manual dispatch, and only a manual dispatch records an
# actor that differs from the label: `POST .../runs` and ChatKit record the label as the actor.
ADMIT_LABELLED = text("""
WITH labelled AS MATERIALIZED (
    SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at
      FROM workflow_runs AS r
     WHERE r.status = 'pending' AND NOT :every_trigger AND NOT (r.triggered_by = ANY (CAST(:triggers AS text[])))
       AND r.created_at < now() - make_interval(secs => :older_than)
       AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id)
       AND r.payload #>> '{audit_log,0,action}' = 'run_created'
       AND r.payload #>> '{audit_log,0,actor}' <> r.triggered_by
       AND NOT r.id IN (SELECT unnest(CAST(:skipped AS text[])))
       AND (CAST(:chosen AS text[]) IS NULL OR r.id = ANY (CAST(:chosen AS text[])))
     ORDER BY r.created_at, r.id
     LIMIT :batch
), admitted AS (
    INSERT INTO orcheo_dispatch.dispatch AS d
           (run_id, workflow_id, workspace_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at,
            dispatcher_id, reason, created_at)
    SELECT r.run_id, r.workflow_id, r.workspace_id, r.triggered_by, 'settled', 'released', 1,
           CASE WHEN r.workspace_id IS NULL THEN 'none' ELSE 'held' END, now(), now(),
           CAST(:dispatcher_id AS uuid), 'push_lost', r.created_at
      FROM labelled AS r WHERE NOT :choose
        ON CONFLICT (run_id) DO NOTHING
    RETURNING d.run_id
)
SELECT r.run_id FROM labelled AS r LEFT JOIN admitted AS a ON a.run_id = r.run_id WHERE :choose OR a.run_id IS NOT NULL
""")
