-- Roles that may do what orcheo-dispatch needs, and no more.
--
--   orcheo-dispatch roles | psql --set ON_ERROR_STOP=1 service=owner
--
-- Run it as the owner of Orcheo's tables, after `orcheo-dispatch migrate`, and again:
--   * after each later `migrate`: what a role may write is granted table by table, on purpose (see the end);
--   * after the API has served its first trace: Orcheo makes the two tables of traces only then.
-- It may be run any number of times. What it does not grant on the tables that it names, it takes back.
--
-- The roles cannot log in. Make roles that can, and make them members:
--
--   CREATE ROLE dispatcher_1 LOGIN PASSWORD '...' IN ROLE orcheo_dispatcher;
--
-- To make the three roles takes CREATEROLE. Where the owner lacks it, let somebody who has it run the first block.

BEGIN;

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['orcheo_dispatcher', 'orcheo_worker', 'orcheo_dashboard'] LOOP
        -- Looked for first: without CREATEROLE even a role that is there cannot be "created".
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END $$;

-- From here on the file is the whole truth about the three roles and these tables.
REVOKE ALL ON ALL TABLES IN SCHEMA orcheo_dispatch FROM orcheo_dispatcher, orcheo_worker, orcheo_dashboard;
REVOKE ALL ON workflow_runs FROM orcheo_dispatcher, orcheo_worker, orcheo_dashboard;

GRANT USAGE ON SCHEMA orcheo_dispatch TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard;

-- Every command first looks whether the schema is the one that its release needs.
GRANT SELECT ON orcheo_dispatch.alembic_version TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard;


-- orcheo_dispatcher: `dispatcher` and `poll`; also `cancel`, `fail`, `requeue` and `isolate`, which
-- operators give by hand.

-- Three columns change, and no fourth: status, its copy in the payload, and updated_at, which is in the payload too.
-- No run is inserted or deleted, and none is moved to another workflow or workspace. The payload must be read to be
-- changed, so a dispatcher can see inputs and outputs, and could change them.
GRANT SELECT (id, workflow_id, workspace_id, triggered_by, status, payload, created_at, updated_at),
      UPDATE (status, payload, updated_at) ON workflow_runs TO orcheo_dispatcher;

-- DELETE prunes what is old.
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.dispatch TO orcheo_dispatcher;
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.process TO orcheo_dispatcher;
GRANT SELECT, INSERT, DELETE ON orcheo_dispatch.ended TO orcheo_dispatcher;

-- `isolate`, by hand: which workflows and versions there are, not what they do.
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.isolation TO orcheo_dispatcher;
GRANT SELECT (id) ON workflows TO orcheo_dispatcher;
GRANT SELECT (id, workflow_id, version) ON workflow_versions TO orcheo_dispatcher;

-- Runs that wait for their next attempt, or for a person. A worker enters them, a dispatcher ends their waiting.
GRANT SELECT, INSERT, UPDATE ON orcheo_dispatch.retry TO orcheo_dispatcher, orcheo_worker;
GRANT SELECT, INSERT, UPDATE ON orcheo_dispatch.question TO orcheo_worker;
GRANT SELECT, UPDATE, DELETE ON orcheo_dispatch.question TO orcheo_dispatcher;
GRANT EXECUTE ON FUNCTION orcheo_dispatch.retry_delay(text, integer) TO orcheo_worker;
GRANT EXECUTE ON FUNCTION orcheo_dispatch.last_checkpoint(text) TO orcheo_dispatcher;
-- `answer` also writes LangGraph's checkpoint_writes, which only Orcheo's own role may.
GRANT EXECUTE ON FUNCTION orcheo_dispatch.answer(text, jsonb, text) TO orcheo_dispatcher;

-- What operators decide. Every process reads it; the command and the status page write it, and append to the log.
GRANT SELECT ON orcheo_dispatch.policy TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard;
GRANT INSERT, UPDATE, DELETE ON orcheo_dispatch.policy TO orcheo_dispatcher;
GRANT SELECT, INSERT ON orcheo_dispatch.operation TO orcheo_dispatcher;
GRANT SELECT ON orcheo_dispatch.operation TO orcheo_dashboard;
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.rate_use TO orcheo_dispatcher;
GRANT EXECUTE ON FUNCTION orcheo_dispatch.paused_now(boolean, timestamptz), orcheo_dispatch.policy_of(text, text)
   TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard;
GRANT EXECUTE ON FUNCTION orcheo_dispatch.record_policy(), orcheo_dispatch.append_only() TO orcheo_dispatcher;
-- Alerts: which conditions are true, and who sends the messages. No row says more than a name, a host and a count.
GRANT SELECT, INSERT, UPDATE ON orcheo_dispatch.alert TO orcheo_dispatcher, orcheo_worker;
GRANT DELETE ON orcheo_dispatch.alert TO orcheo_dispatcher;
GRANT SELECT, UPDATE ON orcheo_dispatch.teller TO orcheo_dispatcher, orcheo_worker;

-- These two write a run's payload, with the rights of whoever calls them.
GRANT EXECUTE ON FUNCTION orcheo_dispatch.iso(timestamptz),
                          orcheo_dispatch.moved(jsonb, text, text, text, jsonb, jsonb)
   TO orcheo_dispatcher, orcheo_worker;
-- Reads a payload that the caller may read; the views call it as well.
GRANT EXECUTE ON FUNCTION orcheo_dispatch.of_chatkit(text, jsonb) TO orcheo_dispatcher, orcheo_dashboard;


-- orcheo_worker: a worker with an executor of your own. A worker with the executor `orcheo` connects as Orcheo
-- itself does: it makes Orcheo's tables and reads its workflows and credentials.

GRANT SELECT (id, workflow_id, workflow_version_id, workspace_id, triggered_by, status, payload, created_at),
      UPDATE (status, payload, updated_at) ON workflow_runs TO orcheo_worker;

-- Whose a workflow is, and whether it may still be executed: a run of another workspace is rejected before any executor
-- sees it. Not its definition.
GRANT SELECT (id, workspace_id, is_archived) ON workflows TO orcheo_worker;

-- It begins, keeps alive and settles what was claimed. It cannot claim: it inserts no row and changes no fence.
GRANT SELECT,
      UPDATE (state, outcome, reason, slot, attempts, worker_id, begun_at, heartbeat_at, lease_expires_at, settled_at,
              suspect, refunded)
   ON orcheo_dispatch.dispatch TO orcheo_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.process TO orcheo_worker;
-- It notes which workflow versions have harmed other runs, and reads what other workers and operators noted.
GRANT SELECT, INSERT, UPDATE, DELETE ON orcheo_dispatch.isolation TO orcheo_worker;


-- orcheo_dashboard: `status`, `runs`, and the panels of a dashboard. Reads, and never the payload: there are the
-- inputs, the outputs and the errors of runs, and an error may quote either.

GRANT SELECT (id, workflow_id, workflow_version_id, workspace_id, triggered_by, status, created_at, updated_at)
   ON workflow_runs TO orcheo_dashboard;
GRANT SELECT ON orcheo_dispatch.dispatch, orcheo_dispatch.process, orcheo_dispatch.ended, orcheo_dispatch.isolation
   TO orcheo_dashboard;

-- The views of docs/dashboards.md. How long the transactions of other roles have been open is shown only to members
-- of pg_read_all_stats: a superuser may GRANT pg_read_all_stats TO orcheo_dashboard.
GRANT SELECT ON orcheo_dispatch.allow_list, orcheo_dispatch.all_pending_runs, orcheo_dispatch.our_pending_runs,
                orcheo_dispatch.live_runs, orcheo_dispatch.pending_runs, orcheo_dispatch.pending_kpi,
                orcheo_dispatch.pending_ages, orcheo_dispatch.pending_by_trigger, orcheo_dispatch.settled_runs,
                orcheo_dispatch.ended_by_minute,
                orcheo_dispatch.runs_by_hour, orcheo_dispatch.throughput, orcheo_dispatch.workflow_latencies,
                orcheo_dispatch.slowest_workflows, orcheo_dispatch.failures, orcheo_dispatch.stuck_runs,
                orcheo_dispatch.lost_runs, orcheo_dispatch.running_elsewhere, orcheo_dispatch.processes,
                orcheo_dispatch.queue_and_backlog, orcheo_dispatch.oldest_transactions,
                orcheo_dispatch.unclaimed_runs, orcheo_dispatch.begun_elsewhere, orcheo_dispatch.isolated_workflows,
                orcheo_dispatch.retrying_runs, orcheo_dispatch.dead_runs, orcheo_dispatch.waiting_runs,
                orcheo_dispatch.policies, orcheo_dispatch.operations, orcheo_dispatch.wanted_workers,
                orcheo_dispatch.held_back_runs
   TO orcheo_dashboard;
-- The view calls it with the rights of its reader, a dispatcher for its metrics.
GRANT EXECUTE ON FUNCTION orcheo_dispatch.wanted_workers_for(float8, integer) TO orcheo_dispatcher, orcheo_dashboard;
-- `run` and `runs` join these two; they hold ids and times.
GRANT SELECT ON orcheo_dispatch.retry, orcheo_dispatch.question TO orcheo_dashboard;
-- `alerts` lists them.
GRANT SELECT ON orcheo_dispatch.alert, orcheo_dispatch.teller TO orcheo_dashboard;
-- A dispatcher reads these for its metrics and its status page.
GRANT SELECT ON orcheo_dispatch.pending_kpi, orcheo_dispatch.stuck_runs, orcheo_dispatch.unclaimed_runs,
                orcheo_dispatch.begun_elsewhere, orcheo_dispatch.isolated_workflows, orcheo_dispatch.operations
   TO orcheo_dispatcher;
-- `status`, `runs` and `run` work with every role.
GRANT SELECT ON orcheo_dispatch.all_pending_runs, orcheo_dispatch.live_runs, orcheo_dispatch.processes,
                orcheo_dispatch.retrying_runs, orcheo_dispatch.dead_runs, orcheo_dispatch.waiting_runs,
                orcheo_dispatch.policies, orcheo_dispatch.held_back_runs
   TO orcheo_dispatcher, orcheo_worker;


DO $$
DECLARE
    api_schema name := (SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                         WHERE c.oid = 'workflow_runs'::regclass);
    our_owner name := (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'orcheo_dispatch');
BEGIN
    -- Everybody has these two on a fresh database; on a hardened one nobody has.
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard',
                   current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO orcheo_dispatcher, orcheo_worker, orcheo_dashboard', api_schema);

    -- The retry policies of workflows, and which checkpoint a run starts over from; not what is in it.
    IF to_regclass('retry_policies') IS NOT NULL THEN
        GRANT SELECT (workflow_id, config) ON retry_policies TO orcheo_worker;
    END IF;
    IF to_regclass('checkpoints') IS NOT NULL THEN
        GRANT SELECT (thread_id, checkpoint_ns, checkpoint_id) ON checkpoints TO orcheo_dispatcher;
    END IF;

    -- To close the trace of a run whose worker is lost: is it open? an error step, and the record's end. The inputs
    -- in the record and the payloads of the steps cannot be read. Without this the log says `traces_not_closed`.
    IF to_regclass('execution_history') IS NOT NULL AND to_regclass('execution_history_steps') IS NOT NULL THEN
        REVOKE ALL ON execution_history, execution_history_steps
          FROM orcheo_dispatcher, orcheo_worker, orcheo_dashboard;
        GRANT SELECT (execution_id, status),
              UPDATE (status, error, completed_at, trace_completed_at, trace_last_span_at)
           ON execution_history TO orcheo_dispatcher, orcheo_worker;
        GRANT SELECT (execution_id, step_index), INSERT (execution_id, step_index, at, payload)
           ON execution_history_steps TO orcheo_dispatcher, orcheo_worker;
    ELSE
        RAISE NOTICE 'Orcheo has written no trace yet: run this again when it has';
    END IF;

    -- A dashboard can read at once what a later `migrate` makes. Nobody can write to it before this file is run
    -- again: a view acts with the rights of its owner, and who may write to a simple view of workflow_runs could
    -- delete runs through it.
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA orcheo_dispatch'
                   ' GRANT SELECT ON TABLES TO orcheo_dashboard', our_owner);
END $$;

COMMIT;
