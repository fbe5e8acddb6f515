"""Define pending, late, stuck and alive by one view each, which commands, page, metrics and views read.

Revision ID: 0006
"""

import re
from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# In a file of its own, so that it can be read, and pasted into psql, as SQL.
_UPGRADE = Path(__file__).with_suffix(".sql")
_REPLACED = {
    "0004_whose_runs.sql": ("pending_runs",),
    "0002_views.sql": ("pending_kpi", "pending_ages", "stuck_runs", "queue_and_backlog", "runs_by_hour"),
}
_NEW = "orcheo_dispatch.our_pending_runs, orcheo_dispatch.all_pending_runs, orcheo_dispatch.live_runs"


def upgrade() -> None:
    """Create the views, let the others read them, and give the roles of an earlier release their rights."""
    op.get_bind().exec_driver_sql(_UPGRADE.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Give the views of earlier revisions their definitions back, then drop the new ones."""
    for name, views in _REPLACED.items():
        statements = (Path(__file__).parent / name).read_text(encoding="utf-8")
        for view in views:
            found = re.search(rf"(?ms)^CREATE OR REPLACE VIEW orcheo_dispatch\.{view} AS$.*?;$", statements)
            assert found is not None, view
            op.get_bind().exec_driver_sql(found[0])
    op.get_bind().exec_driver_sql(f"DROP VIEW {_NEW}")
