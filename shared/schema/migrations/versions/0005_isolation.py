"""Workflows whose runs get processes of their own, runs that are suspects, and begins that do not count.

Revision ID: 0005
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# In a file of its own, so that it can be read, and pasted into psql, as SQL.
_UPGRADE = Path(__file__).with_suffix(".sql")

_DOWNGRADE = """
DROP VIEW orcheo_dispatch.isolated_workflows;
DROP TABLE orcheo_dispatch.isolation;
-- An earlier release knows no refunds: what it counts is what it may still use.
UPDATE orcheo_dispatch.dispatch SET attempts = GREATEST(attempts - refunded, 1) WHERE refunded > 0 AND attempts > 0;
ALTER TABLE orcheo_dispatch.dispatch DROP COLUMN suspect, DROP COLUMN refunded;
"""


def upgrade() -> None:
    """Make the table, its view and the two columns, and give the roles of an earlier release their rights."""
    op.get_bind().exec_driver_sql(_UPGRADE.read_text(encoding="utf-8"))


def downgrade() -> None:
    """Drop them."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
