"""Functions, triggers and views of our schema, so that a dropped one is noticed and created again by `migrate`.

A test holds the names to what the migrations make.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.model import SCHEMA

FUNCTIONS = ("iso", "moved", "of_chatkit")
"""Without these no run is claimed, begins or ends."""
INDEXES = ("dispatch_live", "dispatch_settled", "dispatch_slots_due", "dispatch_unwell")
VIEWS = (
    "allow_list",
    "begun_elsewhere",
    "ended_by_minute",
    "failures",
    "isolated_workflows",
    "lost_runs",
    "oldest_transactions",
    "pending_ages",
    "pending_by_trigger",
    "pending_kpi",
    "pending_runs",
    "processes",
    "queue_and_backlog",
    "running_elsewhere",
    "runs_by_hour",
    "settled_runs",
    "slowest_workflows",
    "stuck_runs",
    "throughput",
    "unclaimed_runs",
    "workflow_latencies",
)

# In the order in which they were made, which is one in which they can be made again. Indexes of constraints are none.
_PARTS = text("""
SELECT p.oid, p.proname::text AS name, pg_get_functiondef(p.oid) AS definition
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema AND p.proname NOT IN ('wake', 'begin_once')
 UNION ALL
SELECT c.oid, c.relname::text,
       CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid)
                      ELSE format('CREATE VIEW %I.%I AS %s', n.nspname, c.relname, pg_get_viewdef(c.oid)) END
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relkind IN ('v', 'i')
   AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid)
 ORDER BY 1
""")


def definitions(connection: Connection, schema: str = SCHEMA) -> dict[str, str]:
    """Return the functions, indexes and views of the schema: what makes each, in an order that works."""
    return {row.name: row.definition for row in connection.execute(_PARTS, {"schema": schema})}


def missing(connection: Connection) -> list[str]:
    """Return the names of those that are not there."""
    there = definitions(connection)
    return [name for name in (*FUNCTIONS, *INDEXES, *VIEWS) if name not in there]
