-- The roles of an earlier release get what this one needs; ops/sql/roles.sql is the whole truth about new ones.
--
-- Executed by each `migrate`, after everything that it names has been created: it may be repeated.
DO $$
DECLARE
    holder record;
BEGIN
    -- Dispatchers claim: they insert into the ledger. The others that record that they are alive are workers.
    FOR holder IN
        SELECT DISTINCT quote_ident(r.rolname) AS name,
               has_table_privilege(r.oid, 'orcheo_dispatch.dispatch', 'INSERT') AS claims
          FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
         WHERE c.oid = 'orcheo_dispatch.process'::regclass AND a.privilege_type = 'INSERT'
           AND r.oid <> c.relowner
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, UPDATE ON orcheo_dispatch.retry, orcheo_dispatch.alert TO ' || holder.name;
        EXECUTE 'GRANT SELECT, UPDATE ON orcheo_dispatch.question, orcheo_dispatch.teller TO ' || holder.name;
        EXECUTE 'GRANT SELECT ON orcheo_dispatch.policy, orcheo_dispatch.policies, orcheo_dispatch.all_pending_runs,'
                ' orcheo_dispatch.held_back_runs, orcheo_dispatch.live_runs, orcheo_dispatch.processes,'
                ' orcheo_dispatch.retrying_runs, orcheo_dispatch.dead_runs, orcheo_dispatch.waiting_runs TO '
                || holder.name;
        IF holder.claims THEN
            EXECUTE 'GRANT SELECT ON orcheo_dispatch.pending_kpi, orcheo_dispatch.stuck_runs,'
                    ' orcheo_dispatch.operations TO ' || holder.name;
            EXECUTE 'GRANT SELECT, INSERT ON orcheo_dispatch.operation TO ' || holder.name;
            EXECUTE 'GRANT INSERT, UPDATE, DELETE ON orcheo_dispatch.policy TO ' || holder.name;
            EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.rate_use TO ' || holder.name;
            EXECUTE 'GRANT DELETE ON orcheo_dispatch.question, orcheo_dispatch.alert TO ' || holder.name;
            IF to_regclass('checkpoints') IS NOT NULL THEN
                EXECUTE 'GRANT SELECT (thread_id, checkpoint_ns, checkpoint_id) ON checkpoints TO ' || holder.name;
            END IF;
        ELSE
            EXECUTE 'GRANT INSERT ON orcheo_dispatch.question TO ' || holder.name;
            IF to_regclass('retry_policies') IS NOT NULL THEN
                EXECUTE 'GRANT SELECT (workflow_id, config) ON retry_policies TO ' || holder.name;
            END IF;
        END IF;
    END LOOP;
    -- Dashboards read what the other roles do not, such as this view.
    FOR holder IN
        SELECT DISTINCT quote_ident(r.rolname) AS name
          FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
         WHERE c.oid = 'orcheo_dispatch.pending_ages'::regclass AND a.privilege_type = 'SELECT' AND r.oid <> c.relowner
    LOOP
        EXECUTE 'GRANT SELECT ON orcheo_dispatch.all_pending_runs, orcheo_dispatch.our_pending_runs,'
                ' orcheo_dispatch.held_back_runs, orcheo_dispatch.live_runs, orcheo_dispatch.retrying_runs,'
                ' orcheo_dispatch.dead_runs, orcheo_dispatch.waiting_runs, orcheo_dispatch.resumed_runs,'
                ' orcheo_dispatch.wanted_workers, orcheo_dispatch.retry, orcheo_dispatch.question,'
                ' orcheo_dispatch.alert, orcheo_dispatch.teller, orcheo_dispatch.policy, orcheo_dispatch.policies,'
                ' orcheo_dispatch.operation, orcheo_dispatch.operations TO ' || holder.name;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'roles of an earlier release lack rights: the owner runs the SQL that orcheo-dispatch roles prints';
END $$;
