"""One run whose end Postgres refuses, delays or holds up fails or waits alone: its neighbours are settled at once."""

from __future__ import annotations

import threading
import time

import pytest

from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.worker.execution import Execution
from tests.support.database.databases import Database
from tests.support.database.refusals import FLOOD, SLEEP, held, locked, meddle, stop_meddling
from tests.support.database.runs import ledger, read_run
from tests.support.processes.processes import until
from tests.support.runners.settling import Settling, settling

_SUCCEEDS = "NEW.status = 'succeeded'"
_ENDS = "NEW.status IN ('succeeded', 'failed')"
_STATES = {
    "P0001": "RaiseException",
    "57014": "QueryCanceled",
    "57P01": "AdminShutdown",
    "23514": "CheckViolation",
    "23505": "UniqueViolation",
    "42501": "InsufficientPrivilege",
    "42P01": "UndefinedTable",
    "40001": "SerializationFailure",
    "40P01": "DeadlockDetected",
    "40002": "TransactionIntegrityConstraintViolation",
    "40003": "StatementCompletionUnknown",
    "53100": "DiskFull",
    "53200": "OutOfMemory",
    "53400": "ConfigurationLimitExceeded",
    "55000": "ObjectNotInPrerequisiteState",
    "58030": "IoError",
    "08006": "ConnectionFailure",
    "25006": "ReadOnlySqlTransaction",
    "26000": "InvalidSqlStatementName",
    "XX000": "InternalError_",
    "XX001": "DataCorrupted",
    "ZZ999": "DatabaseError",
}


def _keep_going(made: Settling, stop: threading.Event) -> None:
    """Settle a good run each half second: who is refused is told from a server that refuses all."""
    while not stop.wait(0.5):
        made.end(*made.begin())


def test_run_whose_end_is_refused_fails_with_the_reason_whatever_the_sqlstate(database: Database) -> None:
    stop = threading.Event()
    with settling(database) as made:
        runs = made.begin(len(_STATES) + 20)
        bad, good = dict(zip(_STATES, runs, strict=False)), runs[len(_STATES) :]
        for state, run in bad.items():
            meddle(database, run.run_id, condition=_SUCCEEDS, state=state)
        began = time.monotonic()
        made.end(*runs)
        until(lambda: made.are_settled(good), what="the good runs are settled", seconds=20)
        stream = threading.Thread(target=_keep_going, args=[made, stop])
        stream.start()
        try:
            until(lambda: made.are_settled(list(bad.values())), what="the bad runs fail", seconds=60)
        finally:
            stop.set()
            stream.join()
        print(f"good within {max(made.finished_at[run.run_id] for run in good) - began:.1f} s")
    assert made.abandoned == []
    for run in good:
        assert read_run(database, run.run_id)["status"] == "succeeded"
    for state, run in bad.items():
        row = read_run(database, run.run_id)
        assert row["payload"]["error"] == f"Postgres refused the end of this run: {_STATES[state]} (SQLSTATE {state})."
        assert (ledger(database, run.run_id)["outcome"], ledger(database, run.run_id)["slot"]) == ("failed", "due")


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch"])
def test_run_whose_every_end_is_refused_is_abandoned(database: Database, table: str) -> None:
    condition = _ENDS if table == "workflow_runs" else "NEW.state = 'settled'"
    with settling(database) as made:
        bad, conflict, *good = made.begin(12)
        meddle(database, bad.run_id, condition=condition, table=table)
        meddle(database, conflict.run_id, condition=condition, table=table, state="40001", deferred=True)
        made.end(bad, conflict, *good)
        until(lambda: made.are_settled(good), what="the good runs are settled", seconds=10)
        until(lambda: sorted(made.abandoned) == sorted([bad.run_id, conflict.run_id]), what="the others are abandoned")
    assert {ledger(database, run.run_id)["state"] for run in (bad, conflict)} == {"running"}


def test_run_whose_end_takes_its_time_delays_others_by_seconds_only(database: Database) -> None:
    with settling(database) as made:
        slow, *good = made.begin(40)
        meddle(database, slow.run_id, condition=_SUCCEEDS, body=SLEEP)
        began = time.monotonic()
        made.end(slow, *good)
        later = made.begin(5)
        made.end(*later)
        until(lambda: made.are_settled(later), what="runs that end later are settled", seconds=12)
        until(lambda: made.are_settled(good), what="its neighbours are settled", seconds=25)
        print(f"neighbours within {time.monotonic() - began:.1f} s")
        until(lambda: made.are_settled([slow]), what="it fails", seconds=60)
    error = read_run(database, slow.run_id)["payload"]["error"]
    assert error == "Postgres refused the end of this run: QueryCanceled (SQLSTATE 57014)."


def test_end_refused_at_commit_costs_nobody_else_theirs(database: Database) -> None:
    with settling(database) as made:
        bad, *good = made.begin(20)
        meddle(database, bad.run_id, condition=_SUCCEEDS, state="23514", deferred=True)
        made.end(bad, *good)
        until(lambda: made.are_settled([bad, *good]), what="all are settled", seconds=20)
    assert "CheckViolation" in read_run(database, bad.run_id)["payload"]["error"]


def test_flood_of_messages_from_postgres_is_not_sent_to_us(database: Database) -> None:
    with settling(database) as made:
        loud, *good = made.begin(5)
        meddle(database, loud.run_id, condition=_SUCCEEDS, body=FLOOD)
        made.end(loud, *good)
        until(lambda: made.are_settled([loud, *good]), what="all are settled", seconds=30)
    assert read_run(database, loud.run_id)["status"] == "succeeded"


@pytest.mark.parametrize("table", ["workflow_runs", "orcheo_dispatch.dispatch"])
def test_row_that_somebody_holds_holds_up_its_own_run_alone(database: Database, table: str) -> None:
    with settling(database) as made:
        waiting, other, *good = made.begin(10)
        with held(database, waiting.run_id, table), held(database, other.run_id, table):
            began = time.monotonic()
            made.end(waiting, other, *good)
            until(lambda: made.are_settled(good), what="the others are settled", seconds=10)
            print(f"others within {time.monotonic() - began:.2f} s")
            assert ledger(database, waiting.run_id)["state"] == "running"
            later = made.begin(3)
            made.end(*later)
            until(lambda: made.are_settled(later), what="later ones are settled", seconds=10)
        until(lambda: made.are_settled([waiting, other]), what="they are settled when they are let go", seconds=10)
    assert {read_run(database, run.run_id)["status"] for run in (waiting, other)} == {"succeeded"}
    # Nobody was blamed, and no statement failed: none waited for a lock.
    assert (made.abandoned, made.failed) == ([], [])


def test_locked_table_delays_ends_and_changes_none(database: Database) -> None:
    with settling(database) as made:
        runs = made.begin(10)
        with locked(database):
            made.end(*runs)
            until(lambda: len(made.statements) >= 4, what="it is tried again and again")
        until(lambda: made.are_settled(runs), what="all are settled", seconds=20)
    assert {read_run(database, run.run_id)["status"] for run in runs} == {"succeeded"}


def test_batch_of_bad_runs_costs_no_more_than_a_few_statements_each(database: Database) -> None:
    with settling(database) as made:
        runs = made.begin(100)
        meddle(database, *(run.run_id for run in runs[:50]), condition=_ENDS)
        made.end(*runs)
        until(lambda: made.are_settled(runs[50:]), what="the good ones are settled", seconds=30)
        until(lambda: len(made.abandoned) == 50, what="the bad ones are abandoned", seconds=30)
        # Two endings for each bad one, a probe for the second, and the divisions.
        assert len(made.statements) < 4 * 50 + 30


def test_nothing_ends_the_threads_that_settle(database: Database) -> None:
    """A fault of ours with some runs costs those alone: heartbeats keep none of them alive for ever."""

    def ending_of(execution: Execution) -> Ending:
        if execution.run.run_id in faults:
            raise faults[execution.run.run_id]
        return Ending.succeeded("{}")

    with settling(database) as made:
        made.ending_of = ending_of
        runs = made.begin(9)
        kinds = [ZeroDivisionError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
        faults: dict[str, BaseException] = dict(zip((run.run_id for run in runs), kinds, strict=False))
        made.end(*runs)
        until(lambda: made.are_settled(runs[5:]), what="the others are settled", seconds=10)
        until(lambda: sorted(made.abandoned) == sorted(faults), what="the faulty ones are let go", seconds=10)

        made.fault = SystemExit(1)
        (lost,) = made.begin()
        made.end(lost)
        until(lambda: lost.run_id in made.abandoned, what="it is let go", seconds=10)
        made.fault = None
        last = made.begin(3)
        made.end(*last)
        until(lambda: made.are_settled(last), what="it goes on", seconds=10)
        assert made.settler.makes_progress


def test_refusal_that_ends_is_forgotten(database: Database) -> None:
    """A conflict that lasts for some seconds, and a lock that a trigger waits for, cost no run its outcome."""
    with settling(database) as made:
        conflict, waits, *good = made.begin(5)
        meddle(database, conflict.run_id, condition=_SUCCEEDS, state="40001")
        meddle(database, waits.run_id, condition=_SUCCEEDS, state="55P03")
        made.end(conflict, waits, *good)
        until(lambda: made.are_settled(good), what="the others are settled", seconds=10)
        stop_meddling(database)
        until(lambda: made.are_settled([conflict, waits]), what="they are settled", seconds=10)
    assert {read_run(database, run.run_id)["status"] for run in (conflict, waits)} == {"succeeded"}
