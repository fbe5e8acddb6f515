"""The tables that the benchmark fills have, in the end, the indexes and keys that they had before."""

from __future__ import annotations

import psycopg

from tests.bench import backlog
from tests.support.database.databases import Database
from tests.support.database.runs import everything, one

_OBJECTS = """
SELECT indexname AS name, indexdef AS definition FROM pg_indexes WHERE tablename IN ('workflow_runs', 'dispatch')
 UNION ALL
SELECT conname, conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('p', 'f')
 ORDER BY 1, 2
"""


def test_ended_runs_are_added_and_all_indexes_and_keys_are_there_again(database: Database) -> None:
    before = everything(database, _OBJECTS)
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        backlog.add_ended(connection, 100)
    assert one(database, "SELECT count(*) AS runs FROM orcheo_dispatch.dispatch WHERE state = 'settled'")["runs"] == 100
    assert everything(database, _OBJECTS) == before
