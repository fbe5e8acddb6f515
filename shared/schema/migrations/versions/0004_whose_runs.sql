-- Which pending runs are whose. See docs/decisions/0019-what-is-claimed.md.


-- Whether ChatKit created this run. It executes its runs itself, inside the API, so nobody else may. Its chats and its
-- widgets give a run these five inputs, its trigger names itself as the source; and like `POST .../runs` it notes the
-- label as the actor, which only a manual dispatch does not. Runs with one of the labels that Orcheo gives itself are
-- not looked into.
CREATE OR REPLACE FUNCTION orcheo_dispatch.of_chatkit(triggered_by text, payload jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN triggered_by IN ('webhook', 'cron', 'listener', 'manual', 'manual_batch', 'cli', 'api', 'canvas')
               THEN false
               ELSE COALESCE(payload #>> '{audit_log,0,actor}', triggered_by) = triggered_by
                    AND (COALESCE(payload #>> '{input_payload,source}', '') = 'chatkit'
                         OR COALESCE(payload -> 'input_payload', '{}')
                            ?& '{message,history,thread_id,session_id,metadata}'::text[])
          END $$;


CREATE OR REPLACE VIEW orcheo_dispatch.pending_runs AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age_seconds,
       r.created_at < now() - interval '5 minutes' AS late,
       (a.every_trigger OR r.triggered_by = ANY (a.triggers)) AND NOT r.of_chatkit
           OR COALESCE((SELECT true FROM orcheo_dispatch.dispatch AS k WHERE k.run_id = r.id), false) AS ours,
       d.state AS claim
  FROM (SELECT p.id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at,
               orcheo_dispatch.of_chatkit(p.triggered_by, p.payload) AS of_chatkit
          FROM workflow_runs AS p WHERE p.status = 'pending'
         ORDER BY p.created_at, p.id LIMIT 25000) AS r
 CROSS JOIN orcheo_dispatch.allow_list AS a
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id AND d.state IN ('claimed', 'published');

COMMENT ON COLUMN orcheo_dispatch.pending_runs.ours IS
    'Whether a dispatcher claims it: allow_list names its label and ChatKit did not create it, or it has a row in the ledger.';


CREATE OR REPLACE VIEW orcheo_dispatch.unclaimed_runs AS
SELECT p.run_id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at, p.age_seconds,
       CASE WHEN orcheo_dispatch.of_chatkit(r.triggered_by, r.payload) THEN 'chatkit' ELSE 'not_in_allow_list' END
           AS reason
  FROM orcheo_dispatch.pending_runs AS p JOIN workflow_runs AS r ON r.id = p.run_id
 WHERE NOT p.ours AND p.created_at < now() - interval '1 minute';

COMMENT ON VIEW orcheo_dispatch.unclaimed_runs IS
    'Pending runs older than one minute that no dispatcher will claim, among the 25,000 oldest pending runs. Each holds a run slot of its workspace.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.triggered_by IS 'Its label.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.created_at IS 'When the API created it.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.age_seconds IS 'Seconds since then.';
COMMENT ON COLUMN orcheo_dispatch.unclaimed_runs.reason IS
    'not_in_allow_list: add its label to ORCHEO_DISPATCH_TRIGGERS. chatkit: the API began to create it for a chat and stopped; cancel it.';


-- Runs that somebody else began: the API itself, or Orcheo's own worker. No index leads to the newest runs, so this reads
-- the end of the table, where new rows are. Both note the actor `worker`, as ours do; ChatKit and clients do not.
CREATE OR REPLACE VIEW orcheo_dispatch.begun_elsewhere AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.status, r.updated_at
  FROM workflow_runs AS r
 WHERE r.ctid >= (SELECT ('(' || GREATEST(0, pg_relation_size('workflow_runs') / current_setting('block_size')::int - 1000)
                         || ',0)')::tid)
   AND r.status <> 'pending' AND r.updated_at > now() - interval '10 minutes'
   AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = r.id AND d.attempts > 0)
   AND r.payload @? '$.audit_log[*] ? (@.action == "run_started" && @.actor == "worker")';

COMMENT ON VIEW orcheo_dispatch.begun_elsewhere IS
    'Runs that changed in the last 10 minutes and that no worker of ours began, from the last 1,000 pages of the table: executed by the API itself (ORCHEO_INPROCESS_EXECUTION) or by Orcheo''s own worker.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.run_id IS 'The run.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.workflow_id IS 'Its workflow.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.workspace_id IS 'Its workspace; null outside of one.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.triggered_by IS 'Its label.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.status IS 'Its status.';
COMMENT ON COLUMN orcheo_dispatch.begun_elsewhere.updated_at IS 'When it last changed.';


-- The roles of an earlier release get what this one needs: a worker looks up whose a run's workflow is before the run
-- begins, and a dispatcher counts what it does not claim.
DO $$
DECLARE
    holder record;
BEGIN
    FOR holder IN
        SELECT DISTINCT quote_ident(r.rolname) AS name,
               has_table_privilege(r.oid, 'orcheo_dispatch.dispatch', 'INSERT') AS claims
          FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
         WHERE c.oid = 'orcheo_dispatch.process'::regclass AND a.privilege_type = 'INSERT'
           AND r.oid <> c.relowner
    LOOP
        IF holder.claims THEN
            EXECUTE 'GRANT SELECT ON orcheo_dispatch.unclaimed_runs, orcheo_dispatch.begun_elsewhere TO ' || holder.name;
        ELSE
            EXECUTE 'GRANT SELECT (id, workspace_id, is_archived) ON workflows TO ' || holder.name;
            EXECUTE 'GRANT SELECT (workspace_id) ON workflow_runs TO ' || holder.name;
        END IF;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'roles of an earlier release lack rights: the owner runs the SQL that orcheo-dispatch roles prints';
END $$;
