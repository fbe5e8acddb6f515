"""Statements pass over runs that another session has locked, lock no others, and wait only where they are meant to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import OperationalError

from orcheo_dispatch.shared.ledger.statements.admit import ADMIT_LABELLED
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_GIVEN
from orcheo_dispatch.shared.ledger.statements.execute import BEGIN, HEARTBEAT, REFUSE
from orcheo_dispatch.shared.ledger.statements.recover import ADOPT_CANCELLED
from orcheo_dispatch.shared.ledger.statements.repair import AWAIT_RUN, LOCK_RUNS
from tests.support.database.databases import Database
from tests.support.database.run_states import CREATED, OTHER, US, Entry, State, write
from tests.support.database.runs import everything, execute, store_of
from tests.support.processes.processes import until

_RUN = text("SELECT FROM workflow_runs AS r WHERE r.id = :run_id FOR UPDATE NOWAIT")
_ROW = text("SELECT FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = :run_id FOR UPDATE NOWAIT")
_STATE = text("SELECT d.state FROM orcheo_dispatch.dispatch AS d WHERE d.run_id = :run_id")
_IMPATIENT = text("SET LOCAL lock_timeout = '300ms'")
_FREE, _HELD = "free", "held"
_STOP = """
CREATE FUNCTION stop_once() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(42);
    RETURN true;
END $$
"""
_STOPPED = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
_WAITS = "SELECT pid FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
_CLAIMED = Entry("claimed", slot="held", lease=30)
_RELEASED = Entry("settled", "released", slot="held", settled=5)
_MESSAGES = {"run_ids": [_FREE, _HELD], "fences": [1, 1], "worker_id": US, "lease": 30, "actor": US}


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    with store_of(database, connections=4) as (_, engine):
        yield engine


def _enter(engine: Engine, status: str, entry: Entry | None, *names: str) -> None:
    """Write runs of this status, each with this row in the ledger."""
    with engine.begin() as connection:
        write(connection, [State(name, status, audit=(f"api {CREATED}",), entry=entry) for name in names])


@contextmanager
def _locked(engine: Engine, statement: TextClause, run_id: str = _HELD) -> Iterator[None]:
    with engine.begin() as connection:
        connection.execute(statement, {"run_id": run_id})
        yield


def _returned(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> list[Any]:
    connection.execute(_IMPATIENT)
    return sorted(connection.execute(statement, parameters).all(), key=lambda row: str(row.run_id))


@pytest.mark.parametrize(
    ("statement", "status", "parameters"),
    [
        (ADOPT_CANCELLED, "cancelled", {"every_trigger": True, "triggers": [], "younger_than": 60, "choose": False}),
        (CLAIM_GIVEN, "pending", {"run_ids": [_FREE, _HELD], "lease": 30}),
        (LOCK_RUNS, "pending", {"run_ids": [_FREE, _HELD]}),
    ],
    ids=["adopt", "claim given", "lock"],
)
def test_run_whose_row_is_locked_is_passed_over(
    engine: Engine, statement: TextClause, status: str, parameters: dict[str, Any]
) -> None:
    _enter(engine, status, _RELEASED, _FREE, _HELD)
    more: dict[str, Any] = {"skipped": [], "chosen": None, "batch": 10, "dispatcher_id": US}
    with _locked(engine, _ROW), engine.begin() as connection:
        assert [row.run_id for row in _returned(connection, statement, {**more, **parameters})] == [_FREE]


def test_run_without_a_row_is_locked_beside_one_whose_row_is_locked(engine: Engine) -> None:
    _enter(engine, "pending", _RELEASED, _HELD)
    _enter(engine, "pending", None, _FREE)
    with _locked(engine, _ROW), engine.begin() as connection:
        rows = _returned(connection, LOCK_RUNS, {"run_ids": [_FREE, _HELD]})
        assert [row.run_id for row in rows] == [_FREE]


@pytest.mark.parametrize(
    "change",
    [
        "state = 'claimed', outcome = NULL, settled_at = NULL, lease_expires_at = now() + interval '1 min'",
        "slot = 'returned'",
    ],
    ids=["claimed", "slot returned"],
)
def test_cancelled_run_is_adopted_by_what_its_row_says_now(database: Database, engine: Engine, change: str) -> None:
    """The row changes after the statement has taken its snapshot, and before it locks the row."""
    _enter(engine, "cancelled", _RELEASED, _HELD)
    execute(database, _STOP)
    slowed, times = re.subn(r"NOT r\.id IN \(SELECT unnest", r"stop_once() AND \g<0>", ADOPT_CANCELLED.text)
    assert times == 1
    given: dict[str, Any] = {"every_trigger": True, "triggers": [], "younger_than": 60, "choose": False, "batch": 10}
    given |= {"skipped": [], "chosen": None, "dispatcher_id": US}

    def adopt() -> list[Any]:
        with engine.begin() as connection:
            return [*connection.execute(text(slowed), given)]

    with psycopg.connect(database.dsn) as gate, ThreadPoolExecutor() as pool:
        gate.execute("SELECT pg_advisory_lock(42)")
        adopted = pool.submit(adopt)
        until(lambda: everything(database, _STOPPED), what="the statement has its snapshot")
        execute(database, f"UPDATE orcheo_dispatch.dispatch SET {change}")
        before = everything(database, "SELECT * FROM orcheo_dispatch.dispatch")
        gate.execute("SELECT pg_advisory_unlock(42)")
        assert adopted.result(timeout=30) == []
    assert everything(database, "SELECT * FROM orcheo_dispatch.dispatch") == before


def test_run_that_another_dispatcher_admits_meanwhile_is_its_own(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        write(connection, [State(_HELD, "pending", label="manual", created=500, audit=(f"api {CREATED}",))])
    given: dict[str, Any] = {"every_trigger": False, "triggers": ["webhook"], "older_than": 60, "batch": 10}
    given |= {"skipped": [], "chosen": None, "choose": False, "dispatcher_id": US}

    def admit() -> list[Any]:
        with engine.begin() as connection:
            return [*connection.execute(ADMIT_LABELLED, given)]

    with ThreadPoolExecutor() as pool:
        with engine.begin() as first:
            assert [row.run_id for row in first.execute(ADMIT_LABELLED, given)] == [_HELD]
            second = pool.submit(admit)
            until(lambda: everything(database, _WAITS), what="the second dispatcher waits for the first")
        assert second.result(timeout=30) == []


@pytest.mark.parametrize("lock", [_RUN, _ROW], ids=["run", "row"])
def test_await_run_waits_for_the_run_and_for_its_row_and_for_no_other(engine: Engine, lock: TextClause) -> None:
    _enter(engine, "pending", _RELEASED, _FREE, _HELD)
    with _locked(engine, lock):
        with engine.begin() as connection:
            assert [row.run_id for row in _returned(connection, AWAIT_RUN, {"run_id": _FREE})] == [_FREE]
        with pytest.raises(OperationalError), engine.begin() as connection:
            _returned(connection, AWAIT_RUN, {"run_id": _HELD})


@pytest.mark.parametrize("lock", [_RUN, _ROW], ids=["run", "row"])
def test_begin_of_a_locked_run_says_so_and_changes_nothing(engine: Engine, lock: TextClause) -> None:
    _enter(engine, "pending", _CLAIMED, _FREE, _HELD)
    with _locked(engine, lock), engine.begin() as connection:
        rows = _returned(connection, BEGIN, _MESSAGES)
        assert [(row.run_id, row.state == "locked") for row in rows] == [(_FREE, False), (_HELD, True)]
    with _locked(engine, _ROW), engine.begin() as connection:
        assert connection.scalar(_STATE, {"run_id": _HELD}) == "claimed"


@pytest.mark.parametrize("worker", [US, OTHER, None])
def test_heartbeat_of_a_locked_row_counts_for_its_own_worker_only(engine: Engine, worker: str | None) -> None:
    _enter(engine, "running", Entry("running", begun=5, lease=5, worker=US), _HELD)
    with _locked(engine, _ROW), engine.begin() as connection:
        rows = _returned(connection, HEARTBEAT, {**_MESSAGES, "worker_id": worker})
        assert [(row.run_id, row.renewed) for row in rows] == ([] if worker == OTHER else [(_HELD, False)])


@pytest.mark.parametrize(
    ("statement", "status", "entry"),
    [
        (BEGIN, "pending", _CLAIMED),
        (REFUSE, "pending", _CLAIMED),
        (CLAIM_GIVEN, "pending", _RELEASED),
        (ADOPT_CANCELLED, "cancelled", _RELEASED),
        (LOCK_RUNS, "pending", _RELEASED),
    ],
    ids=["begin", "refuse", "claim given", "adopt", "lock"],
)
def test_no_run_is_locked_but_those_that_are_given(
    engine: Engine, statement: TextClause, status: str, entry: Entry
) -> None:
    _enter(engine, status, entry, _FREE, _HELD)
    given: dict[str, Any] = {**_MESSAGES, "run_ids": [_HELD], "fences": [1], "errors": ["no"], "dispatcher_id": US}
    given |= {"every_trigger": True, "triggers": [], "younger_than": 60, "choose": False, "batch": 10}
    with engine.begin() as connection:
        rows = _returned(connection, statement, {**given, "skipped": [], "chosen": [_HELD]})
        assert [row.run_id for row in rows] == [_HELD]
        for lock in (_RUN, _ROW):
            with _locked(engine, lock, _FREE):
                pass
        with pytest.raises(OperationalError), _locked(engine, _ROW, _HELD):
            pass
