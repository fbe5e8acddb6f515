"""Views for dashboards, and what they need: a count of what ended, two columns and an index of failures.

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# In a file of its own, so that it can be read, and pasted into psql, as SQL.
_UPGRADE = Path(__file__).with_suffix(".sql")

_DOWNGRADE = """
DROP VIEW orcheo_dispatch.oldest_transactions, orcheo_dispatch.queue_and_backlog, orcheo_dispatch.processes,
          orcheo_dispatch.running_elsewhere, orcheo_dispatch.lost_runs, orcheo_dispatch.stuck_runs,
          orcheo_dispatch.failures, orcheo_dispatch.slowest_workflows, orcheo_dispatch.workflow_latencies,
          orcheo_dispatch.throughput, orcheo_dispatch.runs_by_hour, orcheo_dispatch.settled_runs,
          orcheo_dispatch.ended_by_minute,
          orcheo_dispatch.pending_by_trigger, orcheo_dispatch.pending_ages, orcheo_dispatch.pending_kpi,
          orcheo_dispatch.pending_runs, orcheo_dispatch.allow_list;
DROP TABLE orcheo_dispatch.ended;
DROP INDEX orcheo_dispatch.dispatch_unwell;
ALTER TABLE orcheo_dispatch.process DROP COLUMN triggers;
ALTER TABLE orcheo_dispatch.dispatch DROP COLUMN created_at;
"""


def upgrade() -> None:
    """Make the table, the columns, the index and the views."""
    op.get_bind().exec_driver_sql(_UPGRADE.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
