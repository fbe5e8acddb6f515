"""`migrate` beside live processes: nobody's insert waits for it, and where it gets no lock it says who has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.errors import DatabaseError, RowLockedError
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.schema.api_table import make_index
from orcheo_dispatch.shared.schema.migrate import migrate, migrate_back
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, execute, insert_runs, settings_for, store_of
from tests.support.processes.processes import until

_LONGEST_INSERT_SECONDS = 1.0


@contextmanager
def _inserting(database: Database) -> Iterator[list[float]]:
    """Insert runs as the API does, one after the other; how long each took is in the list."""
    took: list[float] = []
    stopping = threading.Event()
    failures: list[Exception] = []

    def insert() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as api:
            while not stopping.is_set():
                began = time.monotonic()
                try:
                    api.execute(
                        "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by,"
                        " payload, created_at, updated_at) VALUES (gen_random_uuid(), 'w', 'v', 'pending',"
                        " 'webhook', '{}', now(), now())"
                    )
                except psycopg.Error as error:
                    failures.append(error)
                    return
                took.append(time.monotonic() - began)
                stopping.wait(0.01)

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        yield took
    finally:
        stopping.set()
        thread.join()
    assert failures == []


@contextmanager
def _held_for(database: Database, seconds: float, *statements: str) -> Iterator[None]:
    """Keep a transaction open for a while, as a report or a dump does."""
    holds = threading.Event()

    def hold() -> None:
        with psycopg.connect(database.dsn, application_name="long report") as session:
            for statement in statements:
                session.execute(statement.encode())
            holds.set()
            threading.Event().wait(seconds)
            session.rollback()

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(60)
    try:
        yield
    finally:
        thread.join()


_READS = ("SELECT FROM workflow_runs LIMIT 1",)
_WRITES = ("UPDATE workflow_runs SET updated_at = now() WHERE false", "DELETE FROM workflow_runs WHERE false")


@pytest.mark.parametrize("statements", [_READS, _WRITES], ids=["a dump", "a transaction that writes"])
def test_inserts_do_not_wait_for_a_migration_that_waits(orcheo_database: Database, statements: tuple[str, ...]) -> None:
    settings = settings_for(orcheo_database)
    with _inserting(orcheo_database) as took, _held_for(orcheo_database, 4, *statements):
        done = migrate(settings, notify=True)
    assert done.index_present
    assert len(took) > 10
    assert max(took) < _LONGEST_INSERT_SECONDS


@pytest.mark.parametrize("back_to", ["0002", "0003"])
def test_inserts_do_not_wait_for_a_change_of_the_ledger(orcheo_database: Database, back_to: str) -> None:
    """Of tables that a transaction has read or written, at every revision, and on the way back as well."""
    settings = settings_for(orcheo_database)
    migrate(settings)
    reads = ("SELECT FROM orcheo_dispatch.dispatch", "SELECT FROM orcheo_dispatch.process", *_READS, *_WRITES)
    with _inserting(orcheo_database) as took:
        with _held_for(orcheo_database, 2, *reads):
            migrate_back(settings, back_to)
        with _held_for(orcheo_database, 2, *reads):
            migrate(settings)
    assert max(took) < _LONGEST_INSERT_SECONDS


_OF_EARLIER_RELEASES = (
    "DROP INDEX orcheo_dispatch.dispatch_live",
    """CREATE INDEX dispatch_live ON orcheo_dispatch.dispatch (state, lease_expires_at)
        WHERE state IN ('claimed', 'published', 'running')""",
)
_END_MIGRATION = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE query ~ 'CREATE INDEX CONCURRENTLY dispatch_live' AND pid <> pg_backend_pid()
"""
_INDEXES = "SELECT indexdef FROM pg_indexes WHERE indexname ~ '^dispatch_live'"


@pytest.mark.parametrize(
    "left",
    [
        (),
        ("CREATE INDEX dispatch_live_built ON orcheo_dispatch.dispatch (state, run_id) WHERE state = 'claimed'",),
    ],
    ids=["first attempt", "after an attempt that was interrupted"],
)
def test_index_with_leases_is_replaced_while_runs_are_claimed_and_executed(
    database: Database, left: tuple[str, ...]
) -> None:
    (index,) = everything(database, _INDEXES)
    for statement in (*_OF_EARLIER_RELEASES, *left):
        execute(database, statement)
    insert_runs(database, 20)
    with _held_for(database, 2, "SELECT FROM orcheo_dispatch.dispatch"), store_of(database) as (store, _):
        migrating = threading.Thread(target=migrate, args=(settings_for(database),))
        migrating.start()
        longest = 0.0
        for _ in range(20):
            began = time.monotonic()
            (claim,) = claim_all(store, 1)
            assert isinstance(store.begin(claim, worker_id=uuid4(), lease=60), Run)
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.1)
        migrating.join()
    assert everything(database, _INDEXES) == [index]
    assert longest < _LONGEST_INSERT_SECONDS


def test_interrupted_replacement_leaves_an_index_and_is_repeated(database: Database) -> None:
    (index,) = everything(database, _INDEXES)
    for statement in _OF_EARLIER_RELEASES:
        execute(database, statement)

    def migrate_in_vain() -> None:
        with pytest.raises(DatabaseError):
            migrate(settings_for(database))

    with (
        _held_for(database, 3, "UPDATE orcheo_dispatch.dispatch SET reason = reason WHERE false"),
        psycopg.connect(database.dsn, autocommit=True) as other,
    ):
        migrating = threading.Thread(target=migrate_in_vain)
        migrating.start()
        until(lambda: other.execute(_END_MIGRATION).fetchall(), what="the index is being built")
        migrating.join()
    assert everything(database, "SELECT FROM pg_indexes WHERE indexname = 'dispatch_live'") == [{}]
    migrate(settings_for(database))
    assert everything(database, _INDEXES) == [index]


def test_index_without_leases_is_not_built_again(database: Database) -> None:
    (built,) = everything(database, "SELECT oid FROM pg_class WHERE relname = 'dispatch_live'")
    migrate(settings_for(database))
    assert everything(database, "SELECT oid FROM pg_class WHERE relname = 'dispatch_live'") == [built]


def test_index_that_an_interrupted_replacement_has_left_is_dropped(database: Database) -> None:
    (index,) = everything(database, _INDEXES)
    execute(database, "CREATE INDEX dispatch_live_built ON orcheo_dispatch.dispatch (state, run_id)")
    migrate(settings_for(database))
    assert everything(database, _INDEXES) == [index]


def test_parts_are_made_again_without_waiting_in_front_of_others(database: Database) -> None:
    execute(database, "DROP INDEX orcheo_dispatch.dispatch_settled")
    execute(database, "DROP VIEW orcheo_dispatch.stuck_runs")
    insert_runs(database)
    write = "UPDATE orcheo_dispatch.process SET running = 1 WHERE false"
    ledger = "INSERT INTO orcheo_dispatch.ended VALUES (now(), 'x', 1)"
    with _inserting(database) as took, _held_for(database, 2, write, ledger, *_WRITES):
        assert set(migrate(settings_for(database)).made_again) == {"dispatch_settled", "stuck_runs"}
    assert max(took) < _LONGEST_INSERT_SECONDS


def test_migration_that_gets_no_lock_says_who_has_it(
    orcheo_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orcheo_dispatch.shared.database.ddl.PATIENCE_SECONDS", 1.0)
    with _held_for(orcheo_database, 4, *_WRITES), pytest.raises(RowLockedError) as raised:
        migrate(settings_for(orcheo_database), index=False)
    assert "workflow_runs: locked by others for 1 s" in str(raised.value)
    assert "(long report) holds RowExclusiveLock on workflow_runs" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_index_that_waits_for_a_transaction_says_so(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orcheo_dispatch.shared.schema.api_table.PATIENCE_SECONDS", 1.0)
    execute(database, f"DROP INDEX {PENDING_INDEX}")
    with (
        open_engine(settings_for(database), role="migrate", connections=4, migrates=True) as engine,
        _held_for(database, 4, *_WRITES),
        pytest.raises(RowLockedError, match=f"index {PENDING_INDEX}: waited 1 s"),
    ):
        make_index(engine, PENDING_INDEX)
    with open_engine(settings_for(database), role="migrate", connections=4, migrates=True) as engine:
        assert make_index(engine, PENDING_INDEX), "and what it left behind is replaced"
