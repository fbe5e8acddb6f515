"""Processes that are left: none when a worker has ended, and no more runners than before when they were blocked."""

from __future__ import annotations

import signal
from uuid import uuid4

import psutil
import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, insert_runs
from tests.support.processes.processes import Stack, until


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_worker_that_was_stopped_leaves_no_process(database: Database, stack: Stack, isolation: str) -> None:
    with stack.running("worker", ORCHEO_WORKER_ISOLATION=isolation) as worker, stack.running("dispatcher"):
        insert_runs(database, 3)
        until(lambda: all_ended(database), what="the runs have ended")
        main = psutil.Process(worker.pid)
        children = main.children(recursive=True)
        assert any("forkserver" in " ".join(each.cmdline()) for each in children)
        worker.signal(signal.SIGTERM)
        # Not reaped yet: what of its children is alive at that moment, it has left.
        until(lambda: main.status() == psutil.STATUS_ZOMBIE, what="the worker has ended", seconds=20)
        left = [each.pid for each in children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert left == []
        assert worker.exit_code() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_runner_that_joined_blocked_ones_ends_after_them(database: Database, stack: Stack, processes: int) -> None:
    stack.environment |= {
        "ORCHEO_WORKER_EXECUTOR": "tests.neighbours.acts:play",
        "ORCHEO_WORKER_PROCESSES": str(processes),
    }
    with stack.running("worker") as worker, stack.running("dispatcher"):
        for _ in range(2):
            insert_runs(database, processes, version_id=str(uuid4()), inputs={"do": "wait", "seconds": 0.5})
            until(lambda: all_ended(database), what="the first runs have ended")
        until(lambda: len(_runners(worker.pid)) == processes + 1, what="a spare is ready")
        blocked = _runners(worker.pid)
        for each in blocked[:processes]:
            each.suspend()
        insert_runs(database, processes, version_id=str(uuid4()), inputs={"do": "wait", "seconds": 0.5})
        until(lambda: worker.log.count("loop_blocked") == processes, what="all are known to be blocked")
        insert_runs(database, version_id=str(uuid4()), inputs={"do": "wait", "seconds": 0.5})
        until(lambda: len(_runners(worker.pid)) > processes + 1, what="another runner joins them")
        for each in blocked:
            each.resume()
        until(lambda: all_ended(database), what="all runs have ended")
        until(lambda: len(_runners(worker.pid)) == processes + 1, what="as many runners as before")


def _runners(worker: int) -> list[psutil.Process]:
    """Return the runners of a worker, the oldest first."""
    (server,) = [each for each in psutil.Process(worker).children() if "forkserver" in " ".join(each.cmdline())]
    return sorted(server.children(), key=lambda each: each.create_time())
