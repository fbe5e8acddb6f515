-- What operators decide: policies for all runs, for a workspace or for a workflow; and the log of who did what.
--
-- Executed by each `migrate`, after the migrations and before views.sql: each statement may be repeated. No revision
-- creates these tables, so that processes of the last release still start.


-- One row per scope: all runs, one workspace, or one workflow. A null says nothing: the next wider scope decides, and
-- finally the settings of the process. Written by the command, the status page and by hand; a trigger records each
-- change in `operation`, with its author.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.policy (
    -- Both empty: all runs.
    workspace_id    text NOT NULL DEFAULT '',
    workflow_id     text NOT NULL DEFAULT '',
    -- No run is claimed and none begins, whatever other rows say.
    maintenance     boolean,
    -- true: none of its runs is claimed or begins. false: they are, although a wider scope is paused.
    paused          boolean,
    -- When the pause ends; null: when an operator ends it.
    paused_until    timestamptz CHECK (paused_until BETWEEN '2000-01-01 00:00+00' AND '9999-01-01 00:00+00'),
    -- Each step doubles the share of a turn.
    priority        integer CHECK (priority BETWEEN -5 AND 5),
    -- Runs of this scope together that are claimed, published or running.
    max_running     integer CHECK (max_running >= 1),
    -- At most rate_runs claims of this scope together in any rate_seconds.
    rate_runs       integer CHECK (rate_runs >= 1),
    rate_seconds    integer CHECK (rate_seconds BETWEEN 1 AND 604800),
    -- The named queue that its runs are published to: ORCHEO_WORKER_QUEUES.
    queue           text CHECK (queue ~ '^[a-z0-9][a-z0-9_-]{0,39}$'),
    timeout_seconds float8 CHECK (timeout_seconds > 0 AND timeout_seconds <= 31536000),
    lost_runs       text CHECK (lost_runs IN ('resume', 'requeue', 'fail', 'hold')),
    retries         text CHECK (retries IN ('step', 'start', 'off')),
    isolation       text CHECK (isolation IN ('adaptive', 'shared', 'process')),
    why             text,
    by              text NOT NULL DEFAULT session_user,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, workflow_id),
    CONSTRAINT one_scope CHECK (workspace_id = '' OR workflow_id = ''),
    CONSTRAINT maintenance_of_all CHECK (maintenance IS NULL OR (workspace_id = '' AND workflow_id = '')),
    CONSTRAINT priority_of_some CHECK (priority IS NULL OR workspace_id <> '' OR workflow_id <> ''),
    CONSTRAINT pause_that_ends CHECK (paused_until IS NULL OR paused IS TRUE),
    CONSTRAINT rate_in_full CHECK ((rate_runs IS NULL) = (rate_seconds IS NULL))
);
COMMENT ON TABLE orcheo_dispatch.policy IS
    'What operators decided for all runs, for a workspace or for a workflow. Changes are in force at the next poll.';


-- Who did what to which rows. Only ever appended to.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.operation (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    by           text NOT NULL,
    -- Through what: the command, the status page, or SQL by hand.
    interface    text NOT NULL CHECK (interface IN ('command', 'page', 'sql')),
    action       text NOT NULL,
    workspace_id text,
    workflow_id  text,
    run_ids      text[] NOT NULL DEFAULT '{}',
    -- The fields that were set, or the filter that was given. Never an input, an output or an answer.
    details      jsonb NOT NULL DEFAULT '{}',
    changed      integer NOT NULL DEFAULT 0 CHECK (changed >= 0),
    refused      integer NOT NULL DEFAULT 0 CHECK (refused >= 0),
    why          text
);
COMMENT ON TABLE orcheo_dispatch.operation IS 'Who did what to which runs and policies, and through what. Append-only.';
CREATE INDEX IF NOT EXISTS operation_at ON orcheo_dispatch.operation (at);


-- How many claims count against a rate, and until when.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.rate_use (
    workspace_id text NOT NULL,
    workflow_id  text NOT NULL,
    until        timestamptz NOT NULL,
    runs         integer NOT NULL CHECK (runs > 0),
    PRIMARY KEY (workspace_id, workflow_id, until)
);
COMMENT ON TABLE orcheo_dispatch.rate_use IS
    'Claims that count against the rate of a policy until a time, in steps of one percent of its period.';


-- The named queue that a claim was published to, and the queues that a worker consumes; null: the default one.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'orcheo_dispatch.dispatch'::regclass
                                              AND attname = 'queue' AND NOT attisdropped) THEN
        ALTER TABLE orcheo_dispatch.dispatch ADD COLUMN queue text;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'orcheo_dispatch.process'::regclass
                                              AND attname = 'queues' AND NOT attisdropped) THEN
        ALTER TABLE orcheo_dispatch.process ADD COLUMN queues text[];
    END IF;
END $$;


-- Whether a pause is in force: null if there is none, or if it has ended.
CREATE OR REPLACE FUNCTION orcheo_dispatch.paused_now(paused boolean, paused_until timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$ SELECT CASE WHEN paused_until <= now() THEN NULL ELSE paused END $$;


-- What operators decided for the runs of a workflow, field by field: the row of the workflow, else that of its workspace,
-- else the one for all runs. null: nothing. `held` says why no run may begin now: maintenance or paused.
CREATE OR REPLACE FUNCTION orcheo_dispatch.policy_of(of_workspace text, of_workflow text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT NULLIF(jsonb_strip_nulls(jsonb_build_object(
               'held', CASE WHEN a.maintenance THEN 'maintenance'
                            WHEN COALESCE(orcheo_dispatch.paused_now(f.paused, f.paused_until),
                                          orcheo_dispatch.paused_now(w.paused, w.paused_until),
                                          orcheo_dispatch.paused_now(a.paused, a.paused_until)) THEN 'paused' END,
               'queue', NULLIF(COALESCE(f.queue, w.queue, a.queue), 'default'),
               'timeout', COALESCE(f.timeout_seconds, w.timeout_seconds, a.timeout_seconds),
               'lost_runs', COALESCE(f.lost_runs, w.lost_runs, a.lost_runs),
               'retries', COALESCE(f.retries, w.retries, a.retries),
               'isolation', COALESCE(f.isolation, w.isolation, a.isolation))), '{}')
      FROM (SELECT 1) AS one
      LEFT JOIN orcheo_dispatch.policy AS f ON f.workspace_id = '' AND f.workflow_id = of_workflow
      LEFT JOIN orcheo_dispatch.policy AS w ON w.workspace_id = of_workspace AND w.workspace_id <> '' AND w.workflow_id = ''
      LEFT JOIN orcheo_dispatch.policy AS a ON a.workspace_id = '' AND a.workflow_id = '' $$;


-- Record each change of a policy, and who made it: `orcheo_dispatch.author` and `orcheo_dispatch.interface` if the
-- session has set them, otherwise the login name and 'sql'.
CREATE OR REPLACE FUNCTION orcheo_dispatch.record_policy() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    author text := COALESCE(NULLIF(current_setting('orcheo_dispatch.author', true), ''), session_user);
    through text := COALESCE(NULLIF(current_setting('orcheo_dispatch.interface', true), ''), 'sql');
    changed jsonb;
BEGIN
    IF TG_WHEN = 'BEFORE' THEN
        NEW.by := author;
        NEW.at := now();
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO orcheo_dispatch.operation (by, interface, action, workspace_id, workflow_id, details, changed, why)
        VALUES (author, through, 'policy clear', NULLIF(OLD.workspace_id, ''), NULLIF(OLD.workflow_id, ''),
                jsonb_strip_nulls(to_jsonb(OLD)) - '{workspace_id,workflow_id,by,at,why}'::text[], 1,
                NULLIF(current_setting('orcheo_dispatch.why', true), ''));
        RETURN NULL;
    END IF;
    -- What was set, and what was taken back as null.
    changed := to_jsonb(NEW) - '{workspace_id,workflow_id,by,at,why}'::text[];
    IF TG_OP = 'UPDATE' THEN
        SELECT COALESCE(jsonb_object_agg(n.key, n.value), '{}') INTO changed
          FROM jsonb_each(changed) AS n WHERE n.value IS DISTINCT FROM to_jsonb(OLD) -> n.key;
    ELSE
        changed := jsonb_strip_nulls(changed);
    END IF;
    INSERT INTO orcheo_dispatch.operation (by, interface, action, workspace_id, workflow_id, details, changed, why)
    VALUES (author, through, 'policy set', NULLIF(NEW.workspace_id, ''), NULLIF(NEW.workflow_id, ''), changed, 1,
            NEW.why);
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION orcheo_dispatch.append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = 'orcheo_dispatch.operation is append-only: ' || TG_OP || ' is not allowed',
                          ERRCODE = 'object_not_in_prerequisite_state';
END $$;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'orcheo_dispatch.policy'::regclass AND tgname = 'signed') THEN
        CREATE TRIGGER signed BEFORE INSERT OR UPDATE ON orcheo_dispatch.policy
            FOR EACH ROW EXECUTE FUNCTION orcheo_dispatch.record_policy();
        CREATE TRIGGER recorded AFTER INSERT OR UPDATE OR DELETE ON orcheo_dispatch.policy
            FOR EACH ROW EXECUTE FUNCTION orcheo_dispatch.record_policy();
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON orcheo_dispatch.operation
            FOR EACH STATEMENT EXECUTE FUNCTION orcheo_dispatch.append_only();
    END IF;
END $$;


CREATE OR REPLACE VIEW orcheo_dispatch.policies AS
SELECT CASE WHEN p.workflow_id <> '' THEN 'workflow' WHEN p.workspace_id <> '' THEN 'workspace' ELSE 'all' END AS scope,
       NULLIF(p.workspace_id, '') AS workspace_id, NULLIF(p.workflow_id, '') AS workflow_id, p.maintenance,
       orcheo_dispatch.paused_now(p.paused, p.paused_until) AS paused, p.paused_until, p.priority, p.max_running,
       p.rate_runs, p.rate_seconds, p.queue, p.timeout_seconds, p.lost_runs, p.retries, p.isolation, p.why, p.by, p.at
  FROM orcheo_dispatch.policy AS p;

COMMENT ON VIEW orcheo_dispatch.policies IS
    'What operators decided for all runs, for a workspace or for a workflow. See orcheo-dispatch policy.';
COMMENT ON COLUMN orcheo_dispatch.policies.scope IS 'all, workspace or workflow.';
COMMENT ON COLUMN orcheo_dispatch.policies.workspace_id IS 'ID of the workspace; null unless scope is workspace.';
COMMENT ON COLUMN orcheo_dispatch.policies.workflow_id IS 'ID of the workflow; null unless scope is workflow.';
COMMENT ON COLUMN orcheo_dispatch.policies.maintenance IS
    'Whether no run is claimed and none begins, whatever other rows say. Only for scope all.';
COMMENT ON COLUMN orcheo_dispatch.policies.paused IS
    'Whether its runs are neither claimed nor begun; false: they are, although a wider scope is paused; null: the wider scope decides.';
COMMENT ON COLUMN orcheo_dispatch.policies.paused_until IS 'Time at which the pause ends; null: when an operator ends it.';
COMMENT ON COLUMN orcheo_dispatch.policies.priority IS
    'From -5 to 5; each step doubles the share of a turn: of a workspace among workspaces, of a workflow within its workspace.';
COMMENT ON COLUMN orcheo_dispatch.policies.max_running IS
    'Maximum number of its runs, together, that are claimed, published or running.';
COMMENT ON COLUMN orcheo_dispatch.policies.rate_runs IS 'Maximum number of its runs, together, that are claimed in any rate_seconds.';
COMMENT ON COLUMN orcheo_dispatch.policies.rate_seconds IS 'Period of the rate (seconds).';
COMMENT ON COLUMN orcheo_dispatch.policies.queue IS
    'Named queue of its runs: workers with it in ORCHEO_WORKER_QUEUES execute them. default: the default queue.';
COMMENT ON COLUMN orcheo_dispatch.policies.timeout_seconds IS 'In place of ORCHEO_WORKER_RUN_TIMEOUT (seconds).';
COMMENT ON COLUMN orcheo_dispatch.policies.lost_runs IS 'In place of ORCHEO_DISPATCH_LOST_RUNS.';
COMMENT ON COLUMN orcheo_dispatch.policies.retries IS 'In place of ORCHEO_DISPATCH_RETRIES.';
COMMENT ON COLUMN orcheo_dispatch.policies.isolation IS 'In place of ORCHEO_WORKER_ISOLATION.';
COMMENT ON COLUMN orcheo_dispatch.policies.why IS 'Why, as the operator wrote it.';
COMMENT ON COLUMN orcheo_dispatch.policies.by IS 'Who changed it last.';
COMMENT ON COLUMN orcheo_dispatch.policies.at IS 'When.';


CREATE OR REPLACE VIEW orcheo_dispatch.operations AS
SELECT o.id, o.at, o.by, o.interface, o.action, o.workspace_id, o.workflow_id, o.run_ids, o.details, o.changed,
       o.refused, o.why
  FROM orcheo_dispatch.operation AS o
 ORDER BY o.id DESC LIMIT 10000;

COMMENT ON VIEW orcheo_dispatch.operations IS
    'Who did what to which runs and policies, and through what: the newest 10,000, newest first.';
COMMENT ON COLUMN orcheo_dispatch.operations.id IS 'Number of the operation.';
COMMENT ON COLUMN orcheo_dispatch.operations.at IS 'When.';
COMMENT ON COLUMN orcheo_dispatch.operations.by IS 'Name of the operator: the login name of the shell or of the database, or what the reverse proxy says.';
COMMENT ON COLUMN orcheo_dispatch.operations.interface IS 'command, page or sql.';
COMMENT ON COLUMN orcheo_dispatch.operations.action IS 'policy set, policy clear, requeue, cancel, fail, answer, isolate, isolate clear.';
COMMENT ON COLUMN orcheo_dispatch.operations.workspace_id IS 'ID of the workspace that it is about; null if it is about none.';
COMMENT ON COLUMN orcheo_dispatch.operations.workflow_id IS 'ID of the workflow that it is about; null if it is about none.';
COMMENT ON COLUMN orcheo_dispatch.operations.run_ids IS 'IDs of the runs that were changed.';
COMMENT ON COLUMN orcheo_dispatch.operations.details IS 'The fields that were set, or the filter that was given. Never an input or an output.';
COMMENT ON COLUMN orcheo_dispatch.operations.changed IS 'Number of rows that were changed.';
COMMENT ON COLUMN orcheo_dispatch.operations.refused IS 'Number of rows that were not, because the operation is not allowed for them.';
COMMENT ON COLUMN orcheo_dispatch.operations.why IS 'Why, as the operator wrote it.';
