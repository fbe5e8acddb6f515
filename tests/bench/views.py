"""How long each view takes on a million runs: `python -m tests.bench.views`. Not part of the suite."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import psycopg

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.shared.ledger.statements.recover import COUNT_ENDED
from tests.support.database.databases import create, make_orcheo_tables, migrate
from tests.support.database.volume import fill
from tests.support.servers.servers import scratch

_VIEWS = """
SELECT c.oid::regclass::text FROM pg_class AS c
 WHERE c.relkind = 'v' AND c.relnamespace = 'orcheo_dispatch'::regnamespace ORDER BY 1
"""
LIMIT_MILLISECONDS = 200
_TIMES = 7


def main() -> int:
    """Fill, measure, print; return 1 where a view takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=2_000)
    parser.add_argument("--running", type=int, default=300)
    parser.add_argument("--days", type=float, default=7.0, help="how long ago the oldest run was created")
    arguments = parser.parse_args()
    with scratch() as folder, EmbeddedPostgres(folder, durable=False) as server, EmbeddedRedis(folder) as broker:
        with psycopg.connect(server.url, autocommit=True) as admin:
            database = create(admin, server.url)
        make_orcheo_tables(database, broker.url)
        migrate(database)
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            began = time.monotonic()
            fill(
                connection,
                arguments.runs,
                pending=arguments.pending,
                running=arguments.running,
                days=arguments.days,
            )
            print(
                f"{arguments} filled in {time.monotonic() - began:.0f} s, PostgreSQL {connection.info.server_version}"
            )
            _count(connection)
            slow = [view for view in _names(connection) if _measure(connection, view) > LIMIT_MILLISECONDS]
    print(f"too slow: {', '.join(slow)}" if slow else f"each within {LIMIT_MILLISECONDS} ms")
    return 1 if slow else 0


def _count(connection: psycopg.Connection[Any]) -> None:
    """Count what ended, as dispatchers do every half minute."""
    while True:
        began = time.perf_counter()
        counted = connection.execute(str(COUNT_ENDED)).rowcount
        print(f"COUNT_ENDED {1000 * (time.perf_counter() - began):.1f} ms, {counted} rows")
        if not counted:
            return


def _names(connection: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in connection.execute(_VIEWS)]


def _measure(connection: psycopg.Connection[Any], view: str) -> float:
    """Print the times of a view in milliseconds, the first apart from the others; return the median."""
    times = []
    rows: list[Any] = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        rows = connection.execute(f"SELECT * FROM {view}").fetchall()
        times.append(1000 * (time.perf_counter() - began))
    median = statistics.median(times[1:])
    print(
        f"{view:40} {median:8.1f} median {max(times[1:]):8.1f} worst {times[0]:8.1f} first {len(rows):7} rows",
        flush=True,
    )
    return median


if __name__ == "__main__":
    raise SystemExit(main())
