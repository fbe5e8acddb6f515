"""The SQL that creates database roles, and the rights that a role lacks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.model import SCHEMA

# As ops/sql/roles.sql grants them; a test holds the two together. No columns: the right is one on the whole table.
_MISSING = text("""
WITH needed (process, relation, privilege, columns) AS (VALUES
    ('dispatcher', 'workflow_runs', 'SELECT',
        '{id,workflow_id,workspace_id,triggered_by,status,payload,created_at,updated_at}'::text[]),
    ('dispatcher', 'workflow_runs', 'UPDATE', '{status,payload,updated_at}'),
    ('dispatcher', 'orcheo_dispatch.dispatch', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.dispatch', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.dispatch', 'UPDATE', NULL),
    ('dispatcher', 'orcheo_dispatch.dispatch', 'DELETE', NULL),
    ('dispatcher', 'orcheo_dispatch.ended', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.ended', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.ended', 'DELETE', NULL),
    ('dispatcher', 'orcheo_dispatch.pending_kpi', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.stuck_runs', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.unclaimed_runs', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.begun_elsewhere', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.isolated_workflows', 'SELECT', NULL),
    ('dispatcher', 'workflows', 'SELECT', '{id}'),
    ('dispatcher', 'workflow_versions', 'SELECT', '{id,workflow_id,version}'),
    ('worker', 'workflow_runs', 'SELECT',
        '{id,workflow_id,workflow_version_id,workspace_id,triggered_by,status,payload,created_at}'),
    ('worker', 'workflows', 'SELECT', '{id,workspace_id,is_archived}'),
    ('worker', 'workflow_runs', 'UPDATE', '{status,payload,updated_at}'),
    ('worker', 'orcheo_dispatch.dispatch', 'SELECT', NULL),
    ('worker', 'orcheo_dispatch.dispatch', 'UPDATE',
        '{state,outcome,reason,slot,attempts,worker_id,begun_at,heartbeat_at,lease_expires_at,settled_at,suspect,'
        'refunded}'),
    ('both', 'orcheo_dispatch.isolation', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.isolation', 'INSERT', NULL),
    ('both', 'orcheo_dispatch.isolation', 'UPDATE', NULL),
    ('both', 'orcheo_dispatch.isolation', 'DELETE', NULL),
    ('both', 'orcheo_dispatch.retry', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.retry', 'INSERT', NULL),
    ('both', 'orcheo_dispatch.retry', 'UPDATE', NULL),
    ('both', 'orcheo_dispatch.question', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.question', 'UPDATE', NULL),
    ('worker', 'orcheo_dispatch.question', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.question', 'DELETE', NULL),
    ('both', 'orcheo_dispatch.policy', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.policy', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.policy', 'UPDATE', NULL),
    ('dispatcher', 'orcheo_dispatch.policy', 'DELETE', NULL),
    ('dispatcher', 'orcheo_dispatch.operation', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.operation', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.rate_use', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.rate_use', 'INSERT', NULL),
    ('dispatcher', 'orcheo_dispatch.rate_use', 'UPDATE', NULL),
    ('dispatcher', 'orcheo_dispatch.rate_use', 'DELETE', NULL),
    ('both', 'orcheo_dispatch.policies', 'SELECT', NULL),
    ('dispatcher', 'orcheo_dispatch.operations', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.alert', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.alert', 'INSERT', NULL),
    ('both', 'orcheo_dispatch.alert', 'UPDATE', NULL),
    ('dispatcher', 'orcheo_dispatch.alert', 'DELETE', NULL),
    ('both', 'orcheo_dispatch.teller', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.teller', 'UPDATE', NULL),
    ('both', 'orcheo_dispatch.held_back_runs', 'SELECT', NULL),
    ('worker', 'retry_policies', 'SELECT', '{workflow_id,config}'),
    ('dispatcher', 'checkpoints', 'SELECT', '{thread_id,checkpoint_ns,checkpoint_id}'),
    ('both', 'orcheo_dispatch.retrying_runs', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.dead_runs', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.waiting_runs', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.all_pending_runs', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.live_runs', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.processes', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.process', 'SELECT', NULL),
    ('both', 'orcheo_dispatch.process', 'INSERT', NULL),
    ('both', 'orcheo_dispatch.process', 'UPDATE', NULL),
    ('both', 'orcheo_dispatch.process', 'DELETE', NULL),
    ('traces', 'execution_history', 'SELECT', '{execution_id,status}'),
    ('traces', 'execution_history', 'UPDATE',
        '{status,error,completed_at,trace_completed_at,trace_last_span_at}'),
    ('traces', 'execution_history_steps', 'SELECT', '{execution_id,step_index}'),
    ('traces', 'execution_history_steps', 'INSERT', '{execution_id,step_index,at,payload}')
), missing AS (
    SELECT n.process, n.relation, n.privilege, c.name
      FROM needed AS n LEFT JOIN LATERAL unnest(n.columns) AS c(name) ON true
     WHERE to_regclass(n.relation) IS NOT NULL
       AND NOT CASE WHEN c.name IS NULL THEN has_table_privilege(n.relation, n.privilege)
                    ELSE has_column_privilege(n.relation, c.name, n.privilege) END
)
SELECT process, privilege || COALESCE(' (' || string_agg(name, ', ' ORDER BY name) || ')', '') || ' ON ' || relation
           AS what
  FROM missing GROUP BY process, privilege, relation ORDER BY process, relation, privilege
""")
# None where there is no such schema yet.
_MAY_ENTER = text("SELECT has_schema_privilege(to_regnamespace(:schema), 'USAGE')")


@dataclass(frozen=True, slots=True)
class Lacking:
    """What the current role lacks, such as `UPDATE (payload) ON workflow_runs`, for each kind of work."""

    dispatcher: tuple[str, ...]
    worker: tuple[str, ...]
    """With a custom executor; the executor `orcheo` needs all rights of Orcheo itself."""
    traces: tuple[str, ...]
    """Only where Orcheo has made the tables of traces, which it does with the first one."""
    entry: bool = True
    """Whether it has USAGE on our schema."""


def roles_sql() -> str:
    """Return SQL that makes roles of least privilege; it may be run again."""
    return files("orcheo_dispatch.ops").joinpath("sql", "roles.sql").read_text(encoding="utf-8")


def lacking(connection: Connection) -> Lacking:
    """Return what the role of this connection lacks. Raises `SchemaError` where a column is missing."""
    if connection.scalar(_MAY_ENTER, {"schema": SCHEMA}) is False:
        usage = (f"USAGE ON SCHEMA {SCHEMA}",)
        return Lacking(usage, usage, (), entry=False)
    rows = connection.execute(_MISSING).all()

    def of(*processes: str) -> tuple[str, ...]:
        return tuple(row.what for row in rows if row.process in processes)

    return Lacking(of("both", "dispatcher"), of("both", "worker"), of("traces"))
