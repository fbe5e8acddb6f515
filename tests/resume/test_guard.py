"""Rows of a run that can be resumed are written only while the worker holds the run under the fence of its claim."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.worker.books.books import Books
from orcheo_dispatch.worker.books.rows import Rows, rows_to_forget, statement_of
from tests.support.database.databases import Database
from tests.support.database.runs import WORKFLOW_ID, claim_all, everything, execute, insert_runs, ledger, store_of

_TABLES = {
    "execution_history": "execution_id",
    "execution_history_steps": "execution_id",
    "checkpoints": "thread_id",
    "checkpoint_blobs": "thread_id",
    "checkpoint_writes": "thread_id",
}


def _rows(run_id: str, *, step: int) -> Rows:
    """Return a row of each table."""
    rows = Rows()
    at = "2026-11-26T00:00:00+00:00"
    record = {"execution_id": run_id, "workflow_id": WORKFLOW_ID, "inputs": {}, "status": "running", "started_at": at}
    more = {"runnable_config": {}, "tags": [], "callbacks": [], "metadata": {}, "last_at": at}
    rows.add("records", json.dumps(record | more))
    rows.add("steps", json.dumps({"execution_id": run_id, "at": at, "payload": {"step": step}}))
    place = {"thread_id": run_id, "checkpoint_ns": "", "checkpoint_id": f"c{step}"}
    rows.add("checkpoints", json.dumps({**place, "checkpoint": {}, "metadata": {"step": step, "source": "loop"}}))
    blob = {"thread_id": run_id, "checkpoint_ns": "", "channel": "x", "version": str(step), "type": "msgpack"}
    rows.add_bytes("blobs", json.dumps(blob), b"\x01")
    write = {**place, "task_id": "t", "task_path": "", "idx": 0, "channel": "x", "type": "msgpack"}
    rows.add_bytes("writes", json.dumps(write), b"\x01")
    return rows


def _written(database: Database, worker_id: UUID | None, *given: tuple[Claim, Rows]) -> list[str | None]:
    """Write these together and return how each ended."""

    async def write() -> list[str | None]:
        books = Books(database.dsn, running=lambda: 2, worker_id=worker_id)
        await books.open()
        try:
            answers = [books.write(claim, rows, hasten=True) for claim, rows in given]
            return [await answer for answer in answers]
        finally:
            await books.close()

    return asyncio.run(write())


def _counts(database: Database, run_id: str) -> set[int]:
    return {
        everything(database, f"SELECT count(*) AS n FROM {table} WHERE {key} = %s", run_id)[0]["n"]
        for table, key in _TABLES.items()
    }


def _begun(store: Store, worker_id: UUID, runs: int) -> list[Claim]:
    claims = claim_all(store, runs)
    for claim in claims:
        store.begin(claim, worker_id=worker_id, lease=30)
    return claims


@pytest.mark.parametrize("how", ["reaped", "higher fence", "another worker", "settled", "deleted"])
def test_rows_of_a_stale_holder_are_refused_and_those_beside_them_written(database: Database, how: str) -> None:
    insert_runs(database, 2)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        lost, held = _begun(store, worker_id, 2)
        if how == "settled":
            store.settle(lost, Ending.succeeded("{}"))
    change = {
        "reaped": "UPDATE orcheo_dispatch.dispatch SET state = 'settled', outcome = 'requeued',"
        " settled_at = now(), lease_expires_at = NULL",
        "higher fence": "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1",
        "another worker": "UPDATE orcheo_dispatch.dispatch SET worker_id = gen_random_uuid()",
        "settled": None,
        "deleted": "DELETE FROM orcheo_dispatch.dispatch",
    }[how]
    if change is not None:
        execute(database, f"{change} WHERE run_id = %s", lost.run_id)
    outcomes = _written(database, worker_id, (lost, _rows(lost.run_id, step=0)), (held, _rows(held.run_id, step=0)))
    assert outcomes == ["StaleFenceError", None]
    assert _counts(database, lost.run_id) == {0}
    assert _counts(database, held.run_id) == {1}


def test_finished_step_gives_a_run_its_attempts_back_and_inputs_do_not(database: Database) -> None:
    insert_runs(database, 3)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        claims = _begun(store, worker_id, 3)
    execute(database, "UPDATE orcheo_dispatch.dispatch SET attempts = 3")
    given: list[tuple[Claim, Any]] = [
        (each, _rows(each.run_id, step=step)) for each, step in zip(claims, (-1, 0, 1), strict=True)
    ]
    assert _written(database, worker_id, *given) == [None, None, None]
    assert [ledger(database, each.run_id)["refunded"] for each in claims] == [0, 0, 3]


@pytest.mark.parametrize("stale", [False, True])
def test_checkpoints_are_forgotten_for_the_holder_alone(database: Database, stale: bool) -> None:
    insert_runs(database, 2)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        claim, other = _begun(store, worker_id, 2)
    given = [(each, _rows(each.run_id, step=1)) for each in (claim, other)]
    assert _written(database, worker_id, *given) == [None, None]
    if stale:
        execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1 WHERE run_id = %s", claim.run_id)
    assert _written(database, worker_id, (claim, rows_to_forget(claim.run_id))) == [
        "StaleFenceError" if stale else None
    ]
    tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    left = {
        each.run_id: {
            everything(database, f"SELECT count(*) AS n FROM {table} WHERE thread_id = %s", each.run_id)[0]["n"]
            for table in tables
        }
        for each in (claim, other)
    }
    assert left == {claim.run_id: {1 if stale else 0}, other.run_id: {1}}


def test_reaper_passes_over_a_run_whose_checkpoint_is_being_committed(database: Database) -> None:
    """Otherwise the next worker could begin before the checkpoint is there, and execute the step again."""
    insert_runs(database, 1)
    worker_id = uuid4()
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as session:
        (claim,) = _begun(store, worker_id, 1)
        rows = _rows(claim.run_id, step=0)
        rows.claims = {claim.run_id: claim.fence}
        statement, parameters = statement_of(rows, worker_id)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
        session.execute(statement, parameters)
        assert store.reap(LostRuns.RESUME, max_attempts=3, lease=0, batch=10) == []
        session.commit()
        assert [each.outcome for each in store.reap(LostRuns.RESUME, max_attempts=3, lease=0, batch=10)] == ["requeued"]


def test_drain_after_a_finished_step_refunds_no_more_than_began(database: Database) -> None:
    """Otherwise each drain would raise the number of attempts that a run has."""
    insert_runs(database, 1)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        (claim,) = _begun(store, worker_id, 1)
        assert _written(database, worker_id, (claim, _rows(claim.run_id, step=0))) == [None]
        store.settle(claim, Ending.requeued("drained", refund=True))
    row = ledger(database, claim.run_id)
    assert (row["attempts"], row["refunded"]) == (1, 1)


def test_rows_of_two_claims_of_a_run_are_told_apart(database: Database) -> None:
    """The worker may hold the run again, under a new fence, while rows of its earlier claim are queued."""
    insert_runs(database, 1)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        (old,) = _begun(store, worker_id, 1)
        store.settle(old, Ending.requeued("lost"))
        (new,) = _begun(store, worker_id, 1)
    assert new.fence > old.fence
    given = ((old, _rows(old.run_id, step=0)), (new, _rows(new.run_id, step=1)), (old, _rows(old.run_id, step=2)))
    assert _written(database, worker_id, *given) == ["StaleFenceError", None, "StaleFenceError"]
    stored = everything(database, "SELECT checkpoint_id FROM checkpoints WHERE thread_id = %s", new.run_id)
    assert [row["checkpoint_id"] for row in stored] == ["c1"]


def test_locked_row_of_the_ledger_delays_the_rows_of_its_own_run_alone(database: Database) -> None:
    insert_runs(database, 12)
    worker_id = uuid4()
    with store_of(database) as (store, _):
        locked, *others = _begun(store, worker_id, 12)

    async def scenario() -> None:
        books = Books(database.dsn, running=lambda: 12, worker_id=worker_id)
        await books.open()
        try:
            with psycopg.connect(database.dsn) as session:
                session.execute("SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s FOR UPDATE", (locked.run_id,))
                first = books.write(locked, _rows(locked.run_id, step=0), hasten=True)
                rest = [books.write(each, _rows(each.run_id, step=0), hasten=True) for each in others]
                async with asyncio.timeout(20):
                    assert [await each for each in rest] == [None] * len(others)
                assert not first.done()
                session.rollback()
            async with asyncio.timeout(20):
                assert await first is None
        finally:
            await books.close()

    asyncio.run(scenario())
    assert {n for claim in (locked, *others) for n in _counts(database, claim.run_id)} == {1}
