"""SIGTERM: take nothing new, finish what runs, hand the rest back at once, and end with 0."""

from __future__ import annotations

import signal

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything, insert_runs, ledger, nth_claim, times_claimed
from tests.support.processes.processes import Stack, until


def test_drained_worker_finishes_its_runs_and_exits_with_zero(database: Database, stack: Stack) -> None:
    insert_runs(database, 3, inputs={"do": "wait", "seconds": 2})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 3, what="all runs begin")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert all_are(database, "succeeded")
    assert everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'worker'") == []


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_second_signal_stops_the_runs_now(database: Database, stack: Stack, isolation: str) -> None:
    stack.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="3600", ORCHEO_WORKER_ISOLATION=isolation) as worker,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        worker.signal(signal.SIGTERM)
        worker.saw("drain_begun")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert all_are(database, "failed")


@pytest.mark.parametrize(
    ("policy", "status"), [("fail", "failed"), ("requeue", "pending"), ("resume", "pending"), ("hold", "running")]
)
def test_drain_that_takes_too_long_settles_by_the_lost_run_policy(
    database: Database, stack: Stack, policy: str, status: str
) -> None:
    insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with stack.running("dispatcher") as dispatcher:
        with stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="1", ORCHEO_DISPATCH_LOST_RUNS=policy) as worker:
            until(lambda: stack.noted("begun"), what="the run begins")
            dispatcher.signal(signal.SIGTERM)
            assert dispatcher.exit_code() == 0
            worker.signal(signal.SIGTERM)
            assert worker.exit_code() == 0
    assert all_are(database, status)


def test_worker_with_a_process_a_run_drains_and_is_known(database: Database, stack: Stack) -> None:
    insert_runs(database, 6)
    with (
        stack.running("dispatcher"),
        # As prefork was of earlier releases.
        stack.running("worker", ORCHEO_WORKER_POOL="prefork", ORCHEO_WORKER_CONCURRENCY="2") as worker,
    ):
        assert "setting_replaced variable=ORCHEO_WORKER_POOL" in worker.log
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        known = everything(database, "SELECT concurrency FROM orcheo_dispatch.process WHERE kind = 'worker'")
        assert known == [{"concurrency": 2}]
        insert_runs(database, 2, inputs={"do": "wait", "seconds": 2})
        until(lambda: len(stack.noted("begun")) == 8, what="both waiting runs begin")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert all_are(database, "succeeded")


@pytest.mark.parametrize("interval", ["0.5", "30"])
def test_run_handed_back_begins_elsewhere_within_a_second(database: Database, stack: Stack, interval: str) -> None:
    """Not after a lease, nor at the next poll: who hands back wakes the dispatchers."""
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    requeue = {"ORCHEO_DISPATCH_LOST_RUNS": "requeue", "ORCHEO_DISPATCH_POLL_INTERVAL": interval}
    with (
        stack.running("dispatcher", **requeue),
        stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="1", **requeue) as leaving,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        with stack.running("worker", **requeue):
            leaving.signal(signal.SIGTERM)
            until(lambda: len(stack.noted("begun")) == 2, what="it begins again")
            assert leaving.exit_code() == 0
            row = ledger(database, run_id)
            assert (row["state"], nth_claim(row["fence"]), row["attempts"]) == ("running", 2, 2)
            (handed_back,) = everything(
                database,
                "SELECT (record ->> 'at')::timestamptz AS at"
                "  FROM workflow_runs, jsonb_array_elements(payload -> 'audit_log') AS record"
                " WHERE record ->> 'action' = 'run_requeued'",
            )
            assert (row["begun_at"] - handed_back["at"]).total_seconds() < 1


def test_runs_that_wait_go_on_elsewhere_while_a_worker_drains(database: Database, stack: Stack) -> None:
    insert_runs(database, 2, inputs={"do": "wait", "seconds": 3})
    with stack.running("dispatcher"), stack.running("worker", ORCHEO_WORKER_CONCURRENCY="2") as leaving:
        until(lambda: len(stack.noted("begun")) == 2, what="the worker is full")
        others = insert_runs(database, 10)
        with stack.running("worker"):
            leaving.signal(signal.SIGTERM)
            until(lambda: all_are(database, "succeeded"), what="every run succeeded", seconds=20)
            assert leaving.exit_code() == 0
    assert sorted(stack.noted("begun")[2:]) == sorted(others)
    assert times_claimed(database) == {1}


def test_signal_to_the_process_group_drains_too(database: Database, stack: Stack) -> None:
    insert_runs(database, 3, inputs={"do": "wait", "seconds": 2})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 3, what="all runs begin")
        worker.signal_group(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert all_are(database, "succeeded")
