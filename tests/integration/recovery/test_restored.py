"""A database that was restored as it was before: no fence comes twice, and what is out from before changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from orcheo_dispatch.ops.host.check import check
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, NotBegun, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database
from tests.support.database.runs import (
    all_ended,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    settings_for,
    statuses,
    store_of,
)
from tests.support.processes.processes import Stack, until

_DONE = Ending.succeeded('{"final_state": {}}')
_TABLES = ("workflow_runs", "orcheo_dispatch.dispatch", "orcheo_dispatch.process")


def _dump(database: Database) -> None:
    for number, table in enumerate(_TABLES):
        execute(database, f"CREATE TABLE kept_{number} AS TABLE {table}")


def _restore(database: Database) -> None:
    for number, table in enumerate(_TABLES):
        execute(database, f"TRUNCATE {table} CASCADE")
        execute(database, f"INSERT INTO {table} SELECT * FROM kept_{number}")


@contextmanager
def _two_workers(database: Database) -> Iterator[tuple[Store, Store]]:
    with store_of(database) as (_, engine):
        yield Store(engine, worker_id=uuid4()), Store(engine, worker_id=uuid4())


@pytest.mark.parametrize("had_a_row", [True, False])
def test_fence_after_a_restore_is_above_all_before(database: Database, had_a_row: bool) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        if had_a_row:
            store.release(claim_all(store), reason="test")
        _dump(database)
        lost = []
        for _ in range(5):
            (claim,) = claim_all(store)
            store.release([claim], reason="test")
            lost.append(claim.fence)
        _restore(database)
        (new,) = claim_all(store)
        assert new.fence > max(lost)
        for fence in lost:
            answer = store.begin(Claim(run_id, fence), worker_id=uuid4(), lease=30)
            assert isinstance(answer, NotBegun)
        assert isinstance(store.begin(new, worker_id=uuid4(), lease=30), Run)


def test_holder_from_before_a_restore_changes_nothing(database: Database) -> None:
    (run_id,) = insert_runs(database)
    _dump(database)
    worker_id = uuid4()
    with _two_workers(database) as (before, after):
        (old,) = claim_all(before)
        assert isinstance(before.begin(old, worker_id=worker_id, lease=3600), Run)
        _restore(database)
        (new,) = claim_all(after)
        assert isinstance(after.begin(new, worker_id=uuid4(), lease=3600), Run)
        left = (read_run(database, run_id), ledger(database, run_id))
        assert before.heartbeat([old], lease=3600) == {}
        assert before.settle(old, _DONE) is None
        assert (read_run(database, run_id), ledger(database, run_id)) == left


def test_worker_under_the_fence_of_another_changes_nothing(database: Database) -> None:
    """Redis was restored as well, and delivers a message again that the ledger has not seen answered."""
    (run_id,) = insert_runs(database)
    first_id, second_id = uuid4(), uuid4()
    with store_of(database) as (store, engine):
        (claim,) = claim_all(store)
        store.mark_published([claim])
        _dump(database)
        first, second = Store(engine, worker_id=first_id), Store(engine, worker_id=second_id)
        assert isinstance(first.begin(claim, worker_id=first_id, lease=3600), Run)
        _restore(database)
        assert isinstance(second.begin(claim, worker_id=second_id, lease=3600), Run)
        left = (read_run(database, run_id), ledger(database, run_id))
        assert first.heartbeat([claim], lease=7200) == {}
        assert first.settle(claim, Ending.failed("late", reason="x")) is None
        assert (read_run(database, run_id), ledger(database, run_id)) == left
        assert second.heartbeat([claim], lease=3600) == {claim: True}
        assert second.settle(claim, _DONE) is not None


def test_leases_of_processes_that_are_no_more_run_out(database: Database, redis_url: str, tmp_path: Path) -> None:
    """An old ledger: claims whose messages are nowhere, runs whose workers are nowhere, and what was pending."""
    ids = insert_runs(database, 9)
    with store_of(database) as (store, _):
        claims = claim_all(store, 6)
        for claim in claims[:3]:
            store.begin(claim, worker_id=uuid4(), lease=3600)
        store.mark_published(claims[3:5])
    aged = "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '8 days' WHERE state <> 'settled'"
    execute(database, aged)
    stack = Stack(database, redis_url, tmp_path / "effects")
    with stack.running("dispatcher", ORCHEO_DISPATCH_LOST_RUNS="fail"), stack.running("worker"):
        until(lambda: all_ended(database), what="all runs ended")
    assert {run_id: read_run(database, run_id)["status"] for run_id in ids} == {
        **dict.fromkeys(ids, "succeeded"),
        **dict.fromkeys([claim.run_id for claim in claims[:3]], "failed"),
    }


def test_dump_of_the_api_without_our_ledger_is_refused_until_it_is_migrated(
    database: Database, redis_url: str, tmp_path: Path
) -> None:
    pending, running = insert_runs(database, 2)
    with store_of(database) as (store, _):
        claims = {claim.run_id: claim for claim in claim_all(store)}
        store.begin(claims[running], worker_id=uuid4(), lease=3600)
    execute(database, "DROP SCHEMA orcheo_dispatch CASCADE")
    findings = {each.what: (each.grade, each.found, each.mend) for each in check(settings_for(database, redis_url))}
    assert findings["our schema"] == ("wrong", "revision none, needs " + _newest(), "orcheo-dispatch migrate")
    stack = Stack(database, redis_url, tmp_path / "effects")
    stack.database = Database(database.name, database.dsn)
    for kind in ("dispatcher", "worker", "status", "poll"):
        with stack.command(kind) as process:
            assert process.exit_code() == 3
            assert process.log.strip().splitlines()[-1].endswith("run 'orcheo-dispatch migrate'")
    migrate(settings_for(database))
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        assert (claim.run_id, claim.fence > claims[pending].fence) == (pending, True)
        # Nobody knows who executes the other one, if anybody does: it is left alone, and listed.
        assert [row["run_id"] for row in everything(database, "SELECT * FROM orcheo_dispatch.running_elsewhere")] == [
            running
        ]
    assert statuses(database) == {"pending", "running"}


def _newest() -> str:
    from orcheo_dispatch.shared.schema.revision import newest_revision

    return newest_revision()
