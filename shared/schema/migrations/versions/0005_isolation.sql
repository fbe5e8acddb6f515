-- Which workflow versions have harmed other runs, and what the next begin of a run has to know.


-- Whether the next attempt is to be alone in its process, and how many begins do not count as attempts because another
-- run ended them. Neither has a constraint: to check one, Postgres would read the whole table under a lock.
ALTER TABLE orcheo_dispatch.dispatch
    ADD COLUMN IF NOT EXISTS suspect boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS refunded integer NOT NULL DEFAULT 0;


CREATE TABLE IF NOT EXISTS orcheo_dispatch.isolation (
    workflow_id         text NOT NULL,
    -- Empty: all versions of the workflow.
    workflow_version_id text NOT NULL DEFAULT '',
    reason              text NOT NULL,
    -- 'worker', or the operator's login name
    by                  text NOT NULL,
    since               timestamptz NOT NULL,
    -- null: until an operator clears it
    until               timestamptz,
    last_seen_at        timestamptz,
    times               integer NOT NULL DEFAULT 0 CHECK (times >= 0),
    PRIMARY KEY (workflow_id, workflow_version_id)
);
COMMENT ON TABLE orcheo_dispatch.isolation IS
    'Workflows whose runs are executed in processes of their own: who decided so, why, and until when.';


CREATE OR REPLACE VIEW orcheo_dispatch.isolated_workflows AS
SELECT i.workflow_id, NULLIF(i.workflow_version_id, '') AS workflow_version_id, i.reason, i.by, i.since, i.until,
       i.last_seen_at, i.times
  FROM orcheo_dispatch.isolation AS i
 WHERE i.until IS NULL OR i.until > now();

COMMENT ON VIEW orcheo_dispatch.isolated_workflows IS
    'Workflow versions whose runs are executed in processes of their own by workers with ORCHEO_WORKER_ISOLATION=adaptive.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.workflow_id IS 'The workflow.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.workflow_version_id IS 'The version; null: all versions of the workflow.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.reason IS 'What a run of it did, or what the operator wrote.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.by IS 'worker, or the login name of an operator.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.since IS 'When it was isolated.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.until IS 'When it expires; null: when an operator clears it.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.last_seen_at IS 'When a worker last saw it harm other runs or its process; null: never.';
COMMENT ON COLUMN orcheo_dispatch.isolated_workflows.times IS 'How often workers have seen that.';


-- The roles of an earlier release get what this one needs: a worker writes the two new columns and notes what has harmed
-- others; operators isolate and clear with the rights of a dispatcher.
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
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.isolation TO ' || holder.name;
        IF holder.claims THEN
            EXECUTE 'GRANT SELECT ON orcheo_dispatch.isolated_workflows TO ' || holder.name;
            EXECUTE 'GRANT SELECT (id) ON workflows TO ' || holder.name;
            EXECUTE 'GRANT SELECT (id, workflow_id, version) ON workflow_versions TO ' || holder.name;
        ELSE
            EXECUTE 'GRANT UPDATE (suspect, refunded) ON orcheo_dispatch.dispatch TO ' || holder.name;
        END IF;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'roles of an earlier release lack rights: the owner runs the SQL that orcheo-dispatch roles prints';
END $$;
