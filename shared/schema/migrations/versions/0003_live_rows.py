"""One index of the live rows in place of three, and an autovacuum that keeps up with the ledger.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# A write that changes a column of an index writes all indexes of the row anew. These three held the same few rows. A
# claim finds out by the primary key whether a run is held, which its own insert looks up anyway. The index does not
# contain the lease, so that a heartbeat is a HOT update; `live_index.py` replaces one that does.
_UPGRADE = """
DROP INDEX orcheo_dispatch.dispatch_live;
DROP INDEX orcheo_dispatch.dispatch_queued;
DROP INDEX orcheo_dispatch.dispatch_running;
CREATE INDEX dispatch_live ON orcheo_dispatch.dispatch (state, run_id)
 WHERE state IN ('claimed', 'published', 'running');

-- A run leaves some five dead rows behind. By default autovacuum would wait until they are a fifth of the table: a
-- million and more in a ledger of a week. It reads only what changed, so it may come often.
ALTER TABLE orcheo_dispatch.dispatch SET (
    autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
"""

_DOWNGRADE = """
ALTER TABLE orcheo_dispatch.dispatch RESET (
    autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
DROP INDEX orcheo_dispatch.dispatch_live;
CREATE INDEX dispatch_live ON orcheo_dispatch.dispatch (run_id) WHERE state IN ('claimed', 'published', 'running');
CREATE INDEX dispatch_queued ON orcheo_dispatch.dispatch (lease_expires_at) WHERE state IN ('claimed', 'published');
CREATE INDEX dispatch_running ON orcheo_dispatch.dispatch (lease_expires_at) WHERE state = 'running';
"""


def upgrade() -> None:
    """Merge the indexes and have the table vacuumed more often."""
    op.get_bind().exec_driver_sql(_UPGRADE)


def downgrade() -> None:
    """Have three indexes again."""
    op.get_bind().exec_driver_sql(_DOWNGRADE)
