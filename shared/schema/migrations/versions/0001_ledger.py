"""The ledger, the processes, and the two functions that change a run's payload.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_UPGRADE = """
-- A row a run that was ever claimed. The run itself stays in the API's workflow_runs.
CREATE TABLE orcheo_dispatch.dispatch (
    run_id           text PRIMARY KEY,
    workflow_id      text NOT NULL,
    workspace_id     text,
    triggered_by     text NOT NULL,
    state            text NOT NULL CHECK (state IN ('claimed', 'published', 'running', 'settled')),
    outcome          text CHECK (outcome IN ('succeeded', 'failed', 'cancelled', 'timed_out', 'lost',
                                             'skipped', 'released', 'requeued')),
    fence            bigint NOT NULL CHECK (fence > 0),
    attempts         integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- none: the run never held a run slot; held; due: to be given back; returned: given back, for good
    slot             text NOT NULL CHECK (slot IN ('none', 'held', 'due', 'returned')),
    claimed_at       timestamptz NOT NULL,
    published_at     timestamptz,
    begun_at         timestamptz,
    heartbeat_at     timestamptz,
    lease_expires_at timestamptz,
    settled_at       timestamptz,
    dispatcher_id    uuid NOT NULL,
    worker_id        uuid,
    reason           text,
    CONSTRAINT settled_has_an_outcome CHECK ((state = 'settled') = (outcome IS NOT NULL AND settled_at IS NOT NULL)),
    CONSTRAINT live_has_a_lease CHECK ((state = 'settled') = (lease_expires_at IS NULL)),
    CONSTRAINT running_has_a_worker CHECK (state <> 'running' OR (worker_id IS NOT NULL AND begun_at IS NOT NULL))
);
COMMENT ON TABLE orcheo_dispatch.dispatch IS
    'A row a run that was ever claimed: who holds it, under which fence, until when.';

-- A claim passes over runs that are held; of these there are few, whatever the backlog.
CREATE INDEX dispatch_live ON orcheo_dispatch.dispatch (run_id) WHERE state IN ('claimed', 'published', 'running');
-- Lapsed leases are found without reading the settled rows, of which there are many.
CREATE INDEX dispatch_queued ON orcheo_dispatch.dispatch (lease_expires_at) WHERE state IN ('claimed', 'published');
CREATE INDEX dispatch_running ON orcheo_dispatch.dispatch (lease_expires_at) WHERE state = 'running';
CREATE INDEX dispatch_slots_due ON orcheo_dispatch.dispatch (settled_at) WHERE slot = 'due';
CREATE INDEX dispatch_settled ON orcheo_dispatch.dispatch (settled_at) WHERE state = 'settled';

-- Processes that are, or lately were, alive. The id is new at every start.
CREATE TABLE orcheo_dispatch.process (
    id          uuid PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('beat', 'dispatcher', 'worker')),
    host        text NOT NULL,
    pid         integer NOT NULL,
    version     text NOT NULL,
    concurrency integer NOT NULL,
    running     integer NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE orcheo_dispatch.process IS 'Dispatchers, workers and beats that are alive, or were until seen_at.';

-- A timestamp as Orcheo's models write it: 2026-11-23T02:35:01.724016Z
CREATE FUNCTION orcheo_dispatch.iso(at timestamptz) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

-- The payload of a run that changes its status: status, updated_at, one more audit record, and what else changes.
-- The API reads the payload, so column and payload must move in the same UPDATE.
CREATE FUNCTION orcheo_dispatch.moved(
    payload jsonb, status text, action text, actor text, metadata jsonb, changes jsonb)
RETURNS jsonb LANGUAGE sql STABLE AS
$$ SELECT payload || changes || jsonb_build_object(
       'status', status,
       'updated_at', orcheo_dispatch.iso(now()),
       'audit_log', COALESCE(NULLIF(payload -> 'audit_log', 'null'), '[]') || jsonb_build_array(jsonb_build_object(
           'actor', actor, 'action', action, 'at', orcheo_dispatch.iso(now()), 'metadata', metadata))) $$;
"""

_DOWNGRADE = """
DROP FUNCTION orcheo_dispatch.moved;
DROP FUNCTION orcheo_dispatch.iso;
DROP TABLE orcheo_dispatch.process;
DROP TABLE orcheo_dispatch.dispatch;
"""


def upgrade() -> None:
    """Make the tables and functions."""
    op.get_bind().exec_driver_sql(_UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
