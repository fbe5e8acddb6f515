"""Traces and checkpoints of many runs in one statement: what is wrong with one run's rows costs no other its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.worker.books.group_commit import GroupCommit
from orcheo_dispatch.worker.books.postgres import Pool, make_pool, open_pool
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from tests.support.database.databases import Database
from tests.support.database.refusals import locked
from tests.support.database.runs import everything, execute

_TABLE = "execution_history"
_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.execution_id LIKE 'bad%' THEN {body} END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON execution_history FOR EACH ROW EXECUTE FUNCTION refuse();
"""


class _Record(Unit):
    """The record of a trace."""

    def __init__(self, execution_id: str, *, fault: BaseException | None = None) -> None:
        super().__init__(execution_id)
        self.execution_id = execution_id
        self.fault = fault

    def rows(self) -> Rows:
        """Return the record."""
        if self.fault is not None:
            raise self.fault
        rows = Rows()
        record = {"execution_id": self.execution_id, "workflow_id": "w", "status": "running"}
        empty: dict[str, Any] = {"inputs": {}, "runnable_config": {}, "metadata": {}, "tags": [], "callbacks": []}
        rows.add("records", json.dumps({**record, **empty, "started_at": "2026-01-01T00:00:00Z"}))
        return rows


@asynccontextmanager
async def _committing(database: Database) -> AsyncIterator[GroupCommit]:
    pool = make_pool(Pool, database.dsn, name="test", min_size=1, max_size=4)
    await open_pool(pool)
    commit = GroupCommit(pool, running=lambda: 2)
    try:
        yield commit
        async with asyncio.timeout(60):
            await commit.close()
    finally:
        await pool.close()


def _play(database: Database, scenario: Callable[[GroupCommit], Awaitable[None]]) -> None:
    async def play() -> None:
        async with _committing(database) as commit:
            await scenario(commit)

    asyncio.run(play())


def _add(commit: GroupCommit, *names: str) -> list[Unit]:
    units: list[Unit] = [_Record(f"{name} {uuid4()}") for name in names]
    for unit in units:
        commit.add(unit)
    commit.hasten()
    return units


async def _written(units: list[Unit], seconds: float) -> list[Exception | None]:
    async with asyncio.timeout(seconds):
        return [await asyncio.shield(unit.written) for unit in units]


def _meddle(database: Database, body: str) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_REFUSE.format(body=body).encode())


@pytest.mark.parametrize("state", ["P0001", "23514", "42501", "XX000"])
def test_refused_unit_is_told_so_at_once_and_alone(orcheo_here: Database, state: str) -> None:
    _meddle(orcheo_here, f"RAISE EXCEPTION 'no' USING ERRCODE = '{state}';")

    async def scenario(commit: GroupCommit) -> None:
        *good, bad = _add(commit, *["good"] * 30, "bad")
        assert await _written(good, 10) == [None] * 30
        (error,) = await _written([bad], 10)
        assert isinstance(error, psycopg.Error)
        assert error.sqlstate == state

    _play(orcheo_here, scenario)
    assert len(everything(orcheo_here, f"SELECT FROM {_TABLE}")) == 30


@pytest.mark.parametrize(
    "body",
    [
        *(
            f"RAISE EXCEPTION 'no' USING ERRCODE = '{state}';"
            for state in ("40001", "57014", "08006", "53100", "55P03")
        ),
        "PERFORM pg_sleep(60);",
    ],
)
def test_unit_that_may_pass_is_tried_again_beside_the_others(orcheo_here: Database, body: str) -> None:
    _meddle(orcheo_here, body)

    async def scenario(commit: GroupCommit) -> None:
        *good, bad = _add(commit, *["good"] * 10, "bad")
        assert await _written(good, 25) == [None] * 10
        assert await _written(_add(commit, *["good"] * 5), 10) == [None] * 5
        assert not bad.written.done()
        await asyncio.to_thread(execute, orcheo_here, f"ALTER TABLE {_TABLE} DISABLE TRIGGER USER")
        assert await _written([bad], 15) == [None]

    _play(orcheo_here, scenario)


def test_row_that_somebody_holds_holds_up_its_own_run_alone(orcheo_here: Database) -> None:
    async def scenario(commit: GroupCommit) -> None:
        (first,) = _add(commit, "held")
        assert await _written([first], 10) == [None]
        assert isinstance(first, _Record)
        with psycopg.connect(orcheo_here.dsn) as somebody:
            somebody.execute(f"SELECT FROM {_TABLE} WHERE execution_id = %s FOR UPDATE".encode(), (first.execution_id,))
            again: Unit = _Record(first.execution_id)
            commit.add(again)
            assert await _written(_add(commit, *["good"] * 5), 15) == [None] * 5
            assert not again.written.done()
            # What the same run leaves later waits behind it, and costs the others no statement.
            later: Unit = _Record(first.execution_id)
            commit.add(later)
            assert await _written(_add(commit, *["good"] * 5), 5) == [None] * 5
            assert not later.written.done()
            somebody.rollback()
        assert await _written([again, later], 10) == [None, None]

    _play(orcheo_here, scenario)


def test_locked_table_delays_all_and_costs_nobody_anything(orcheo_here: Database) -> None:
    async def scenario(commit: GroupCommit) -> None:
        with locked(orcheo_here, _TABLE):
            units = _add(commit, *["good"] * 40)
            _, waiting = await asyncio.wait([unit.written for unit in units], timeout=6)
            assert len(waiting) == 40
            assert commit.makes_progress
        assert await _written(units, 30) == [None] * 40

    _play(orcheo_here, scenario)


@pytest.mark.parametrize("times", [1, 5])
def test_cancelled_task_does_not_end_the_group_commit(orcheo_here: Database, times: int) -> None:
    """A workflow may cancel all tasks of its loop."""

    async def scenario(commit: GroupCommit) -> None:
        units = _add(commit, *["good"] * 20)
        for _ in range(times):
            mine = asyncio.current_task()
            while not (others := [task for task in asyncio.all_tasks() if "_write_queued" in repr(task)]):
                await asyncio.sleep(0)
            for task in others:
                assert task is not mine
                task.cancel()
            await asyncio.wait(others)
        assert await _written(units, 20) == [None] * 20
        assert await _written(_add(commit, "good"), 10) == [None]

    _play(orcheo_here, scenario)


def test_fault_of_ours_with_one_unit_costs_that_one_alone(orcheo_here: Database) -> None:
    async def scenario(commit: GroupCommit) -> None:
        faulty = _Record("faulty", fault=ZeroDivisionError())
        commit.add(faulty)
        assert await _written(_add(commit, "good", "good"), 10) == [None, None]
        assert isinstance((await _written([faulty], 1))[0], ZeroDivisionError)

    _play(orcheo_here, scenario)


def test_failure_of_one_statement_leaves_no_transaction_open(orcheo_here: Database) -> None:
    _meddle(orcheo_here, "RAISE EXCEPTION 'no';")

    async def scenario(commit: GroupCommit) -> None:
        await _written(_add(commit, "bad", "good"), 10)
        query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state IN (%s, %s)"
        assert everything(orcheo_here, query, "idle in transaction", "idle in transaction (aborted)") == []

    _play(orcheo_here, scenario)
