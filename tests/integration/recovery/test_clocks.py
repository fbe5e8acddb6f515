"""Clocks that are off, processes that come back under the same name, Beats that are two or none."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process as KnownProcess
from tests.support.database.databases import Database
from tests.support.database.runs import (
    all_are,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    nth_claim,
    read_run,
    store_of,
)
from tests.support.processes.processes import Process, Stack, until


@contextmanager
def _with_clock_off(stack: Stack, kind: str, hours: float, **variables: str) -> Iterator[Process]:
    environment = {**stack.environment_of(kind, **variables), "TEST_CLOCK_HOURS": str(hours)}
    with Process(["-m", "tests.support.processes.clock_off", kind], environment) as process:
        process.saw(f"{kind}_started")
        yield process


def test_hosts_whose_clocks_are_off_by_hours_change_nothing(database: Database, stack: Stack) -> None:
    stack.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    ids = insert_runs(database, 5)
    (long,) = insert_runs(database, inputs={"do": "wait", "seconds": 5})
    with (
        _with_clock_off(stack, "beat", 2) as beat,
        _with_clock_off(stack, "dispatcher", -2, ORCHEO_DISPATCH_LEASE="3") as behind,
        _with_clock_off(stack, "dispatcher", 2, ORCHEO_DISPATCH_LEASE="3") as ahead,
        _with_clock_off(stack, "worker", -2) as worker,
    ):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        (lost,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
        until(lambda: lost in stack.noted("begun"), what="a run begins")
        worker.signal_group(signal.SIGKILL)
        until(lambda: read_run(database, lost)["status"] == "failed", what="it is reaped", seconds=10)
        for dispatcher in (behind, ahead):
            assert dispatcher.log.count("run_reaped") <= 1
            # The ticks of a Beat from the future, or the past, are taken.
            assert "beat_silent" not in dispatcher.log
        assert "Traceback" not in beat.log
    assert sorted(stack.noted("begun")) == sorted([*ids, long, lost])
    for run_id in (*ids, long, lost):
        row = ledger(database, run_id)
        assert row["attempts"] == 1
        assert row["claimed_at"] <= row["begun_at"] <= row["settled_at"]
        (now,) = everything(database, "SELECT now() AS at")
        assert abs((now["at"] - row["settled_at"]).total_seconds()) < 300


def test_process_that_comes_back_with_the_same_host_and_pid_is_another(database: Database) -> None:
    """In a container the pid is always 1. What the first one held, the second one neither renews nor settles."""
    first, second = (KnownProcess(ProcessKind.WORKER, host="box", pid=1) for _ in range(2))
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, engine):
        (claim,) = claim_all(store)
        store.begin(claim, worker_id=first.id, lease=30)
        for process in (first, second):
            process.seen(engine)
        second.gone(engine)
        assert str(ledger(database, run_id)["worker_id"]) == str(first.id)
        (row,) = everything(database, "SELECT id FROM orcheo_dispatch.process WHERE host = 'box' AND pid = 1")
        assert row["id"] == first.id


def test_two_beats_do_no_harm(database: Database, stack: Stack) -> None:
    ids = insert_runs(database, 20)
    with stack.running("beat"), stack.running("beat"), stack.running("dispatcher"), stack.running("worker"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        until(
            lambda: len(everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'beat'")) == 2,
            what="both are known",
        )
    assert sorted(stack.noted("begun")) == sorted(ids)
    assert {nth_claim(ledger(database, run_id)["fence"]) for run_id in ids} == {1}


def test_beat_that_has_been_dead_for_an_hour_is_bridged_and_reported(database: Database, stack: Stack) -> None:
    with stack.running("worker"), stack.running("dispatcher") as dispatcher:
        with stack.running("beat") as beat:
            until(
                lambda: everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'beat'"),
                what="Beat is known",
            )
            beat.signal_group(signal.SIGKILL)
        dispatcher.saw("beat_silent")
        execute(
            database,
            "UPDATE orcheo_dispatch.process SET seen_at = now() - interval '1 hour', "
            "started_at = now() - interval '2 hours' WHERE kind = 'beat'",
        )
        insert_runs(database, 3)
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        with stack.command("status", "--json") as status:
            assert status.exit_code() == 0
            status.finish()
        found = json.loads(status.log[status.log.index("{") :])
        assert 3600 <= found["beat_silent_for"] < 4000
        with stack.command("status") as shown:
            assert shown.exit_code() == 0
            shown.finish()
        assert "no Beat for 1 h" in shown.log
