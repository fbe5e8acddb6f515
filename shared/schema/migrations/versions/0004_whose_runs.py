"""Which pending runs are whose: ChatKit's are told apart, and views show those that nobody claims.

Revision ID: 0004
"""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# In a file of its own, so that it can be read, and pasted into psql, as SQL.
_UPGRADE = Path(__file__).with_suffix(".sql")

_DOWNGRADE = """
DROP VIEW orcheo_dispatch.begun_elsewhere, orcheo_dispatch.unclaimed_runs;
CREATE OR REPLACE VIEW orcheo_dispatch.pending_runs AS
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age_seconds,
       r.created_at < now() - interval '5 minutes' AS late,
       a.every_trigger OR r.triggered_by = ANY (a.triggers) AS ours,
       d.state AS claim
  FROM (SELECT p.id, p.workflow_id, p.workspace_id, p.triggered_by, p.created_at
          FROM workflow_runs AS p WHERE p.status = 'pending'
         ORDER BY p.created_at, p.id LIMIT 25000) AS r
 CROSS JOIN orcheo_dispatch.allow_list AS a
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id AND d.state IN ('claimed', 'published');
COMMENT ON COLUMN orcheo_dispatch.pending_runs.ours IS 'Whether a dispatcher takes it: see allow_list.';
DROP FUNCTION orcheo_dispatch.of_chatkit(text, jsonb);
"""


def upgrade() -> None:
    """Make the function and the views, and let roles that begin runs read whose a workflow is."""
    op.get_bind().exec_driver_sql(_UPGRADE.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
