"""Views that `migrate` creates or replaces each time that it runs, whatever the revision: see `views.sql`.

A new revision prevents processes of an earlier release from starting; a replaced view does not affect them.
The idea is that of Flyway's repeatable migrations.
"""

from __future__ import annotations

import re
from importlib.resources import files

from sqlalchemy import Connection

_OURS = files("orcheo_dispatch.shared.schema") / "views.sql"
_VERSIONS = files("orcheo_dispatch.shared.schema.migrations.versions")
_REPLACED = {
    "0004_whose_runs.sql": ("pending_runs",),
    "0002_views.sql": ("pending_kpi", "pending_ages", "stuck_runs", "queue_and_backlog", "runs_by_hour"),
}
NEW = ("our_pending_runs", "all_pending_runs", "live_runs")
"""Views that no migration creates, each before those that it reads."""


def create_views(connection: Connection) -> None:
    """Create or replace the views, and give the roles of an earlier release the rights to read them."""
    connection.exec_driver_sql(_OURS.read_text(encoding="utf-8"))


def remove_views(connection: Connection) -> None:
    """Restore the definitions of the migrations, so that they can be undone, and drop the views that they lack."""
    for name, views in _REPLACED.items():
        statements = (_VERSIONS / name).read_text(encoding="utf-8")
        for view in views:
            found = re.search(rf"(?ms)^CREATE OR REPLACE VIEW orcheo_dispatch\.{view} AS$.*?;$", statements)
            assert found is not None, view
            connection.exec_driver_sql(found[0])
    connection.exec_driver_sql("DROP VIEW IF EXISTS " + ", ".join(f"orcheo_dispatch.{view}" for view in NEW))
