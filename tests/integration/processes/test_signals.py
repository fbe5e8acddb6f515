"""What signals do to our processes: SIGTERM and SIGINT drain, SIGQUIT stops at once, SIGHUP costs nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from signal import Signals

import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything, insert_runs
from tests.support.processes.processes import ROOT, Process, Stack, until

_LONG = {"do": "wait", "seconds": 3600}


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
@pytest.mark.parametrize(
    ("policy", "status", "code"), [("fail", "failed", 1), ("hold", "running", 1), ("requeue", "pending", 0)]
)
def test_sigquit_settles_runs_by_the_lost_run_policy_and_the_exit_code_says_whether_any_was_cut_short(
    database: Database, stack: Stack, policy: str, status: str, code: int, isolation: str
) -> None:
    insert_runs(database, 2, inputs=_LONG)
    variables = {
        "ORCHEO_DISPATCH_LOST_RUNS": policy,
        "ORCHEO_WORKER_ISOLATION": isolation,
        "ORCHEO_WORKER_CONCURRENCY": "2",
    }
    with stack.running("dispatcher") as dispatcher:
        with stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="3600", **variables) as worker:
            until(lambda: len(stack.noted("begun")) == 2, what="the runs begin")
            dispatcher.signal(signal.SIGTERM)
            assert dispatcher.exit_code() == 0
            worker.signal(signal.SIGQUIT)
            assert worker.exit_code(seconds=20) == code
    assert all_are(database, status)
    assert len(stack.noted("cancelled")) == 2
    assert everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'worker'") == []


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["worker", "dispatcher", "beat"])
def test_idle_process_ends_in_order_with_zero(database: Database, stack: Stack, kind: str, number: Signals) -> None:
    with stack.running(kind) as process:
        process.signal(number)
        assert process.exit_code(seconds=20) == 0
    assert "Traceback" not in process.log
    assert everything(database, "SELECT FROM orcheo_dispatch.process") == []


def test_beat_stops_although_python_ignores_exceptions_where_the_signal_arrives(stack: Stack) -> None:
    """Celery's own handler raises `SystemExit` there, and Beat would tick on."""
    with Process(["-m", "tests.support.processes.interrupted_beat"], stack.environment) as beat:
        assert beat.exit_code(seconds=20) == 0
    assert "Exception ignored" not in beat.log


@pytest.mark.parametrize("interval", ["0.2", "3600"])
def test_beat_stops_at_once_between_two_ticks(stack: Stack, interval: str) -> None:
    with stack.running("beat", ORCHEO_DISPATCH_POLL_INTERVAL=interval) as beat:
        beat.signal(signal.SIGTERM)
        assert beat.exit_code(seconds=3) == 0


def test_beat_stops_while_redis_does_not_answer(stack: Stack, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        with stack.running("beat", ORCHEO_DISPATCH_POLL_INTERVAL="0.2", REDIS_URL=server.url) as beat:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            try:
                time.sleep(1)
                beat.signal(signal.SIGTERM)
                assert beat.exit_code(seconds=10) == 0
            finally:
                os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_interrupt_stops_the_runs_as_a_second_sigterm_does(
    database: Database, stack: Stack, signals: tuple[Signals, Signals]
) -> None:
    insert_runs(database, inputs=_LONG)
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="3600", ORCHEO_DISPATCH_LOST_RUNS="hold") as worker,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        worker.signal(signals[0])
        worker.saw("drain_begun")
        worker.signal(signals[1])
        worker.exit_code(seconds=20)
    assert all_are(database, "running")
    assert stack.noted("cancelled")


@pytest.mark.parametrize("remapped", ["SIGQUIT", ""])
def test_sigterm_drains_whatever_celery_is_told_to_make_of_it(database: Database, stack: Stack, remapped: str) -> None:
    insert_runs(database, inputs={"do": "wait", "seconds": 2})
    with stack.running("dispatcher"), stack.running("worker", REMAP_SIGTERM=remapped) as worker:
        until(lambda: stack.noted("begun"), what="the run begins")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert all_are(database, "succeeded")


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_sighup_is_ignored_and_logged_and_no_run_is_lost(database: Database, stack: Stack, isolation: str) -> None:
    insert_runs(database, 2, inputs={"do": "wait", "seconds": 3})
    with (
        stack.running("beat") as beat,
        stack.running("dispatcher") as dispatcher,
        stack.running("worker", ORCHEO_WORKER_ISOLATION=isolation, ORCHEO_WORKER_CONCURRENCY="2") as worker,
    ):
        until(lambda: len(stack.noted("begun")) == 2, what="the runs begin")
        for process in (beat, dispatcher, worker):
            process.signal(signal.SIGHUP)
            process.saw("sighup_ignored")
        until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        insert_runs(database)
        until(lambda: all_are(database, "succeeded"), what="a later run succeeds as well")
        assert [row["attempts"] for row in everything(database, "SELECT attempts FROM orcheo_dispatch.dispatch")] == [
            1
        ] * 3
        for process in (worker, dispatcher, beat):
            process.signal(signal.SIGTERM)
            assert process.exit_code() == 0
    assert len(stack.noted("begun")) == 3


def test_worker_whose_terminal_is_closed_drains(database: Database, stack: Stack) -> None:
    insert_runs(database, inputs={"do": "wait", "seconds": 3})
    leader, follower = pty.openpty()
    worker = subprocess.Popen(
        [sys.executable, "-m", "orcheo_dispatch.ops.cli", "worker"],
        env={**os.environ, **stack.environment_of("worker")},
        cwd=ROOT,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    try:
        os.close(follower)
        with stack.running("dispatcher"):
            until(lambda: stack.noted("begun"), what="the run begins")
            # Nobody reads any more, and the shell sends the signal.
            os.close(leader)
            worker.send_signal(signal.SIGHUP)
            assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert all_are(database, "succeeded")


@pytest.mark.parametrize("kind", ["beat", "dispatcher", "worker"])
def test_hangup_that_is_ignored_from_the_start_stays_ignored(database: Database, stack: Stack, kind: str) -> None:
    """As under `nohup`."""
    arguments = ["-c", f"import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); {_BECOME}", kind]
    with Process(arguments, stack.environment_of(kind)) as process:
        process.saw(f"{kind}_started")
        process.signal(signal.SIGHUP)
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0
    assert "sighup_ignored" not in process.log


_BECOME = "os.execv(sys.executable, [sys.executable, '-m', 'orcheo_dispatch.ops.cli', *sys.argv[1:]])"
