"""The index of live rows without their leases, in place of the one with leases that earlier releases created.

A heartbeat changes only the times of a row. If no index contains them, it is a HOT update: it writes no index, and the
next access to the page removes the old version without VACUUM (README.HOT of PostgreSQL). The statements that look for
expired leases read all live rows instead, which are few beside the settled ones.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.shared.database.ddl import patiently
from orcheo_dispatch.shared.ledger.model import SCHEMA
from orcheo_dispatch.shared.schema.api_table import make_concurrently

NAME = "dispatch_live"
_BUILT = f"{NAME}_built"
"""Name of the new index until it replaces the old one."""
_CONTAINS_LEASES = text("""
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(:index) AND attname = 'lease_expires_at')
""")
_DROP = f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{_BUILT}"
_CREATE = f"""
CREATE INDEX CONCURRENTLY {_BUILT} ON {SCHEMA}.dispatch (state, run_id)
 WHERE state IN ('claimed', 'published', 'running')
"""
_SWAP = (f"DROP INDEX {SCHEMA}.{NAME}", f"ALTER INDEX {SCHEMA}.{_BUILT} RENAME TO {NAME}")


def contains_leases(connection: Connection) -> bool:
    """Return whether the index of live rows is that of an earlier release."""
    return bool(connection.scalar(_CONTAINS_LEASES, {"index": f"{SCHEMA}.{NAME}"}))


def replace_index(engine: Engine) -> None:
    """Replace an index that contains leases; idempotent, and readers and writers of the ledger do not wait for it.

    Processes of earlier releases work with either. Raises `RowLockedError` if transactions that were open before do not
    end in time; the next attempt drops what was built by then.
    """
    with engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        # Left by an attempt that was interrupted.
        make_concurrently(engine, autocommit, NAME, _DROP)
        if not contains_leases(autocommit):
            return
        make_concurrently(engine, autocommit, NAME, _CREATE)

    def swap() -> None:
        with engine.begin() as connection:
            for statement in _SWAP:
                connection.exec_driver_sql(statement)

    patiently(engine, f"{SCHEMA}.dispatch", swap)
