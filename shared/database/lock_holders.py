"""Name the sessions that hold a lock on our tables."""

from __future__ import annotations

from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.text.plain import plain

_MOST = 3
_LONGEST_NAME = 60
# Table locks that conflict with our statements, whether granted or awaited: later requests wait behind either. The text
# of a query is left out, because it may quote a run's inputs. Only members of pg_read_all_stats see the state and the
# times of other roles' sessions.
_HOLDERS = text("""
SELECT DISTINCT ON (l.pid) l.pid, c.relname::text AS table_name, l.mode, l.granted, a.application_name, a.state,
       EXTRACT(epoch FROM now() - COALESCE(a.query_start, a.xact_start))::float8 AS seconds
  FROM pg_locks AS l
  JOIN pg_class AS c ON c.oid = l.relation
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'relation'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (c.oid = to_regclass('workflow_runs') OR c.relnamespace = to_regnamespace('orcheo_dispatch'))
   AND (:writers OR l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
 ORDER BY l.pid, l.granted DESC
 LIMIT :most
""")
# CREATE INDEX CONCURRENTLY waits for every transaction that was open before it. That of this session began just now,
# and is never older.
_OPEN = text("""
SELECT a.pid, a.application_name, a.state, EXTRACT(epoch FROM now() - a.xact_start)::float8 AS seconds
  FROM pg_stat_activity AS a
 WHERE a.datname = current_database() AND a.xact_start < now() - make_interval(secs => :seconds)
 ORDER BY a.xact_start LIMIT :most
""")


def lock_holders(engine: Engine, *, writers: bool = False) -> str:
    """Return the sessions that hold or await locks on our tables, or "" if there are none or they cannot be read.

    With `writers`, sessions that read or write the tables are included: a change of the schema waits for them as well.
    """
    try:
        with transaction(engine, timeout_milliseconds=1000, lock_timeout=0.2) as connection:
            rows = connection.execute(_HOLDERS, {"most": _MOST, "writers": writers}).all()
    except DatabaseError:
        # The holder is only additional information: that the table is locked is logged in any case.
        return ""
    return "; ".join(
        f"pid {row.pid} ({plain(row.application_name or 'no application_name', _LONGEST_NAME)}) "
        f"{'holds' if row.granted else 'waits for'} {row.mode} on {row.table_name}"
        + (f", {row.state}" if row.state else "")
        + (f", {row.seconds:.0f} s since its query began" if row.seconds is not None else "")
        for row in rows
    )


def open_transactions(engine: Engine, *, seconds: float = 60.0) -> str:
    """Return the sessions that have had a transaction open for longer than this, or "" as in `lock_holders`."""
    try:
        with transaction(engine, timeout_milliseconds=1000, lock_timeout=0.2) as connection:
            rows = connection.execute(_OPEN, {"most": _MOST, "seconds": seconds}).all()
    except DatabaseError:
        return ""
    return "; ".join(
        f"pid {row.pid} ({plain(row.application_name or 'no application_name', _LONGEST_NAME)}) "
        f"has had a transaction open for {row.seconds:.0f} s"
        for row in rows
    )
