"""Updates that repeat for as long as a run takes write no index: PostgreSQL counts them as heap-only tuples (HOT)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, insert_runs, one, store_of

_WORKER = UUID("00000000-0000-4000-8000-000000000001")
_RUNS = 50
_FIRST_ROUNDS, _ROUNDS = 20, 40
_COUNTED = """
SELECT n_tup_upd AS updated, n_tup_upd - n_tup_hot_upd AS with_indexes
  FROM pg_stat_user_tables WHERE relid = 'orcheo_dispatch.dispatch'::regclass
"""


def _beat(store: Store, claims: list[Claim]) -> int:
    return len(store.heartbeat(claims, lease=60))


def _extend(store: Store, claims: list[Claim]) -> int:
    return store.extend(claims, lease=60, reason="queued")


@pytest.mark.parametrize(("begun", "update"), [(True, _beat), (False, _extend)], ids=["heartbeats", "extended leases"])
def test_lease_is_extended_without_a_write_to_an_index(
    database: Database, *, begun: bool, update: Callable[[Store, list[Claim]], int]
) -> None:
    insert_runs(database, _RUNS)
    with store_of(database, connections=1) as (store, engine):
        claims = claim_all(store)
        if begun:
            assert all(isinstance(each, Run) for each in store.begin_all(claims, worker_id=_WORKER, lease=60))
        # Rows move to other pages until each page has room for another version of its rows.
        before = _counted(database, engine, lambda: [update(store, claims) for _ in range(_FIRST_ROUNDS)])
        after = _counted(database, engine, lambda: [update(store, claims) for _ in range(_ROUNDS)])
    assert after["updated"] - before["updated"] == _RUNS * _ROUNDS
    assert after["with_indexes"] - before["with_indexes"] <= 0.02 * _RUNS * _ROUNDS


def _counted(database: Database, engine: Engine, update: Callable[[], object]) -> dict[str, int]:
    """Return what Postgres has counted after this, on the one connection of the engine."""
    update()
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    return one(database, _COUNTED)
