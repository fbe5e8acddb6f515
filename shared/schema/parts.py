"""Functions, indexes and views of our schema, so that a dropped one is noticed and created again by `migrate`.

A test compares the names with what `migrate` creates.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.model import SCHEMA

FUNCTIONS = (
    "iso",
    "moved",
    "of_chatkit",
    "retry_delay",
    "last_checkpoint",
    "answer",
    "paused_now",
    "policy_of",
    "record_policy",
    "append_only",
)
"""Without these, no run can be claimed, begin or end."""
FIGURES = ("wanted_workers_for",)
"""Functions that only compute what views and metrics show."""
INDEXES = ("dispatch_live", "dispatch_settled", "dispatch_slots_due", "dispatch_unwell", "operation_at", "retry_due")
VIEWS = (
    "all_pending_runs",
    "allow_list",
    "begun_elsewhere",
    "dead_runs",
    "ended_by_minute",
    "failures",
    "held_back_runs",
    "isolated_workflows",
    "live_runs",
    "lost_runs",
    "oldest_transactions",
    "operations",
    "our_pending_runs",
    "pending_ages",
    "pending_by_trigger",
    "pending_kpi",
    "pending_runs",
    "policies",
    "processes",
    "queue_and_backlog",
    "retrying_runs",
    "running_elsewhere",
    "runs_by_hour",
    "settled_runs",
    "slowest_workflows",
    "stuck_runs",
    "throughput",
    "unclaimed_runs",
    "waiting_runs",
    "wanted_workers",
    "workflow_latencies",
)

# Without the indexes of constraints.
_PARTS = text("""
SELECT p.proname::text AS name, pg_get_functiondef(p.oid) AS definition
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
 WHERE n.nspname = :schema AND p.proname NOT IN ('wake', 'begin_once')
 UNION ALL
SELECT c.relname::text,
       CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid)
                      ELSE format('CREATE VIEW %I.%I AS %s', n.nspname, c.relname, pg_get_viewdef(c.oid)) END
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relkind IN ('v', 'i')
   AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid)
 ORDER BY 1
""")


def definitions(connection: Connection, schema: str = SCHEMA) -> dict[str, str]:
    """Return the functions, indexes and views of the schema with their SQL, each after those that it refers to."""
    found = {row.name: row.definition for row in connection.execute(_PARTS, {"schema": schema})}
    named = re.compile(rf"\b{re.escape(schema)}\.(\w+)")
    order = TopologicalSorter(
        {name: set(named.findall(sql)) & found.keys() - {name} for name, sql in found.items()}
    ).static_order()
    return {name: found[name] for name in order}


def missing(connection: Connection) -> list[str]:
    """Return the names of those that are missing."""
    there = definitions(connection)
    return [name for name in (*FUNCTIONS, *FIGURES, *INDEXES, *VIEWS) if name not in there]
