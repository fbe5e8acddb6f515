"""Views, functions and tables that each `migrate` creates or replaces, whatever the revision: see the SQL files.

A new revision prevents processes of an earlier release from starting; a replaced view does not affect them.
The idea is that of Flyway's repeatable migrations.
"""

from __future__ import annotations

import re
from importlib.resources import files

from sqlalchemy import Connection

_SCHEMA = files("orcheo_dispatch.shared.schema")
_VERSIONS = files("orcheo_dispatch.shared.schema.migrations.versions")
_REPLACED = {
    "0004_whose_runs.sql": ("pending_runs",),
    "0002_views.sql": ("pending_kpi", "pending_ages", "stuck_runs", "queue_and_backlog", "runs_by_hour"),
}
_NEW_VIEWS = (
    "wanted_workers",
    "held_back_runs",
    "retrying_runs",
    "dead_runs",
    "waiting_runs",
    "resumed_runs",
    "policies",
    "operations",
    "our_pending_runs",
    "all_pending_runs",
    "live_runs",
)
"""Views that no migration creates, each before those that it reads."""
_NEW_TABLES = ("retry", "question", "policy", "operation", "rate_use", "alert", "teller")
_NEW_FUNCTIONS = (
    "retry_delay",
    "last_checkpoint",
    "answer",
    "paused_now",
    "policy_of",
    "record_policy",
    "append_only",
    "wanted_workers_for",
)
_NEW_COLUMNS = (("dispatch", "queue"), ("process", "queues"))
NEW = frozenset((*_NEW_VIEWS, *_NEW_FUNCTIONS, "retry_due", "operation_at"))
"""Views, functions and indexes that no migration creates."""


def create_tables(connection: Connection) -> None:
    """Create what concerns runs that wait, decisions of operators, and alerts.

    The tables of the migrations must exist.
    """
    for name in ("waiting.sql", "policy.sql", "alerts.sql"):
        connection.exec_driver_sql((_SCHEMA / name).read_text(encoding="utf-8"))


def create_views(connection: Connection) -> None:
    """Create or replace the other views, and give the roles of an earlier release their rights."""
    for name in ("views.sql", "scaling.sql", "rights.sql"):
        connection.exec_driver_sql((_SCHEMA / name).read_text(encoding="utf-8"))


def remove_views(connection: Connection) -> None:
    """Restore the definitions of the migrations, so that they can be undone, and drop what they lack."""
    for name, views in _REPLACED.items():
        statements = (_VERSIONS / name).read_text(encoding="utf-8")
        for view in views:
            found = re.search(rf"(?ms)^CREATE OR REPLACE VIEW orcheo_dispatch\.{view} AS$.*?;$", statements)
            assert found is not None, view
            connection.exec_driver_sql(found[0])
    for kind, names in (("VIEW", _NEW_VIEWS), ("TABLE", _NEW_TABLES), ("FUNCTION", _NEW_FUNCTIONS)):
        connection.exec_driver_sql(f"DROP {kind} IF EXISTS " + ", ".join(f"orcheo_dispatch.{name}" for name in names))
    for table, column in _NEW_COLUMNS:
        connection.exec_driver_sql(f"ALTER TABLE orcheo_dispatch.{table} DROP COLUMN IF EXISTS {column}")
