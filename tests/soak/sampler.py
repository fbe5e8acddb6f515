"""Samples of what the stack uses: memory and descriptors of processes, rows and sizes of tables, WAL, lag."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping

import psutil
import psycopg

from tests.bench.usage import MEGABYTE
from tests.soak.curves import Bound, Curve

_MEMORY, _DESCRIPTORS = Bound("MB", floor=10.0), Bound("", floor=8.0)
_BOUNDS = {
    "dead rows": Bound("rows", share=0.25, floor=3_000.0),
    "live rows": Bound("rows", share=0.10, floor=500.0),
    "tables": Bound("MB", share=0.15, floor=1.5),
    "indexes": Bound("MB", share=0.15, floor=1.5),
    "WAL": Bound("KB/run", share=0.25, floor=2.0),
    "oldest pending run": Bound("s", most=30.0),
    "longest idle transaction": Bound("s", most=1.0),
    "idle in transaction": Bound("ms/run", share=0.25, floor=0.5),
}
_DATABASE = """
SELECT (SELECT COALESCE(sum(s.n_dead_tup), 0)::float8 FROM pg_stat_user_tables AS s
         WHERE s.schemaname = 'orcheo_dispatch') AS "dead rows",
       (SELECT COALESCE(sum(s.n_live_tup), 0)::float8 FROM pg_stat_user_tables AS s
         WHERE s.schemaname = 'orcheo_dispatch') AS "live rows",
       (SELECT sum(pg_table_size(s.relid))::float8 / 1048576 FROM pg_stat_user_tables AS s
         WHERE s.schemaname = 'orcheo_dispatch') AS "tables",
       (SELECT sum(pg_indexes_size(s.relid))::float8 / 1048576 FROM pg_stat_user_tables AS s
         WHERE s.schemaname = 'orcheo_dispatch') AS "indexes",
       pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 AS wal,
       (SELECT COALESCE(EXTRACT(epoch FROM now() - min(r.created_at)), 0)::float8 FROM workflow_runs AS r
         WHERE r.status = 'pending') AS "oldest pending run",
       (SELECT COALESCE(max(EXTRACT(epoch FROM clock_timestamp() - a.state_change)), 0)::float8
          FROM pg_stat_activity AS a WHERE a.state LIKE 'idle in transaction%') AS "longest idle transaction",
       (SELECT d.idle_in_transaction_time FROM pg_stat_database AS d WHERE d.datname = current_database()) AS idle,
       (SELECT count(*) FROM workflow_runs AS r WHERE r.status NOT IN ('pending', 'running'))::float8 AS ended
"""
_PER_RUN = {"WAL": ("wal", 1 / 1024), "idle in transaction": ("idle", 1.0)}


class Sampler:
    """Takes samples of the processes of `units` and of the database, and keeps them as curves."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], units: Iterable[str]) -> None:
        self._connection = connection
        self._began = time.monotonic()
        self._before: dict[str, float] = {}
        self.curves = {name: Curve(name, bound) for name, bound in _BOUNDS.items()}
        for unit in units:
            for what, bound in (("memory", _MEMORY), ("descriptors", _DESCRIPTORS)):
                self.curves[f"{unit}, {what}"] = Curve(f"{unit}, {what}", bound)

    def take(self, pids: Mapping[str, int | None]) -> None:
        """Take one. A unit without a process has no sample now."""
        at = time.monotonic() - self._began
        for unit, pid in pids.items():
            if pid is not None and (found := _of_tree(pid)) is not None:
                for what, value in zip(("memory", "descriptors"), found, strict=True):
                    self.curves[f"{unit}, {what}"].points.append((at, value))
        now = self._read()
        for name in _BOUNDS:
            if name in now:
                self.curves[name].points.append((at, now[name]))
        ended = now["ended"] - self._before.get("ended", now["ended"])
        if ended > 0:
            for name, (counter, unit_of) in _PER_RUN.items():
                grown = now[counter] - self._before[counter]
                self.curves[name].points.append((at, grown * unit_of / ended))
        self._before = now

    def _read(self) -> dict[str, float]:
        cursor = self._connection.execute(_DATABASE)
        row = cursor.fetchone()
        assert row is not None
        assert cursor.description is not None
        return {column.name: float(str(value)) for column, value in zip(cursor.description, row, strict=True)}


def _of_tree(pid: int) -> tuple[float, float] | None:
    """Return proportional memory in MB and open descriptors of a process tree, or None if it has ended."""
    memory = descriptors = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                memory += process.memory_full_info().pss
                descriptors += process.num_fds()
        return memory / MEGABYTE, float(descriptors)
    return None
