"""When a worker has ended, none of its processes is left: a service manager would kill it, and say so."""

from __future__ import annotations

import signal

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
