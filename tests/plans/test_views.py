"""The views of dashboards on 200,000 runs: none reads all of a big table, whatever the planner is told to avoid."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.dispatcher import backlog
from orcheo_dispatch.shared.ledger import status as queries
from orcheo_dispatch.shared.ledger.statements.recover import COUNT_ENDED
from tests.conftest import Admin
from tests.plans.test_plans import _compiled, _explain, _indexes, _scanned_whole
from tests.support.database.databases import Database, cloned
from tests.support.database.views import views_of
from tests.support.database.volume import fill
from tests.support.servers.servers import Servers

_RUNS = 200_000
_BIG = {"workflow_runs", "dispatch"}
_LIMIT_SECONDS = 1.0
"""Each takes some 20 ms of it; 200 ms at a million runs is measured by tests/bench/views.py, on a quiet machine."""


@pytest.fixture(scope="module")
def filled(admin: Admin, servers: Servers, template: Database) -> Iterator[Database]:
    """A week of runs, counted by the dispatchers as far as they count."""
    with (
        cloned(admin, servers, template.name) as database,
        psycopg.connect(database.dsn, autocommit=True) as connection,
    ):
        fill(connection, _RUNS, pending=2000, running=300, days=7, payload=100)
        while connection.execute(_compiled(COUNT_ENDED)).rowcount:
            pass
        connection.execute("ANALYZE orcheo_dispatch.ended")
        yield database


@pytest.fixture
def full(filled: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection to it, for reading."""
    with psycopg.connect(filled.dsn, autocommit=True) as connection:
        yield connection


def test_views_read_no_big_table_as_a_whole(full: psycopg.Connection[Any], filled: Database) -> None:
    views = views_of(filled)
    assert len(views) > 10
    for view in sorted(views):
        row = full.execute(f"EXPLAIN (FORMAT JSON) SELECT * FROM {view}").fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        assert not _scanned_whole(plan) & _BIG, f"{view}: {json.dumps(plan, indent=1)}"
        began = time.monotonic()
        full.execute(f"SELECT * FROM {view}").fetchall()
        assert time.monotonic() - began < _LIMIT_SECONDS, view


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_gauges_of_the_backlog_read_no_big_table_as_a_whole(full: psycopg.Connection[Any], mode: str) -> None:
    full.execute(f"SET plan_cache_mode = {mode}")
    for statement in (
        backlog.PENDING,
        queries.DISPATCH,
        queries.SLOTS_DUE,
        backlog.PROCESSES,
        backlog.OLDEST_TRANSACTION,
        queries.WANTED_WORKERS,
    ):
        plan = _explain(full, statement, {"target_delay": 60.0} if statement is queries.WANTED_WORKERS else {})
        assert not _scanned_whole(plan) & _BIG, json.dumps(plan, indent=1)


def test_counting_reads_by_the_index(full: psycopg.Connection[Any]) -> None:
    plan = _explain(full, COUNT_ENDED, {})
    assert "dispatch_settled" in _indexes(plan)
    assert not _scanned_whole(plan) & _BIG, json.dumps(plan, indent=1)
