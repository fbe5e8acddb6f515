"""What a runner has when it starts: all that it is made of, from the fork server, and nothing that is run again."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping
from typing import Any

import psutil

from orcheo_dispatch.worker.executor.protocol import Run
from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, execute, insert_runs, read_run
from tests.support.processes.processes import Stack, until

_MARK = "TEST_MARK_OF_THIS_WORKER"
_OURS = ("orcheo_dispatch.",)


async def look(_: Run) -> Mapping[str, Any]:
    """Say which modules were imported after the fork: the collector does not list what was there before."""
    ours = {name: module for name, module in sys.modules.items() if name.startswith(_OURS)}
    listed = {id(each) for each in gc.get_objects()}
    late = sorted(name for name, module in ours.items() if id(module) in listed)
    return {"final_state": {"late": late, "main": sys.modules["__main__"].__name__, "of_ours": len(ours)}}


def test_runner_imports_nothing_of_its_own_and_no_main_module(database: Database, stack: Stack) -> None:
    with (
        stack.running("worker", ORCHEO_WORKER_EXECUTOR=f"{__name__}:look", ORCHEO_WORKER_ISOLATION="process"),
        stack.running("dispatcher"),
    ):
        (run,) = insert_runs(database)
        until(lambda: all_ended(database), what="the run has ended")
    found = read_run(database, run)["payload"]["output_payload"]["final_state"]
    assert found["of_ours"] > 10
    # The module that holds what a child executes is imported by the fork server when the others are there already.
    assert found["late"] in ([], ["orcheo_dispatch.worker.runners", "orcheo_dispatch.worker.runners.fork_server"])
    assert found["main"] != "__mp_main__"


async def collector(_: Run) -> Mapping[str, Any]:
    """Say whether the garbage collector is on, and how many objects it leaves out."""
    return {"final_state": {"collects": gc.isenabled(), "frozen": gc.get_freeze_count()}}


def test_runner_collects_garbage_but_not_what_was_imported(database: Database, stack: Stack) -> None:
    with stack.running("worker", ORCHEO_WORKER_EXECUTOR=f"{__name__}:collector"), stack.running("dispatcher"):
        (run,) = insert_runs(database)
        until(lambda: all_ended(database), what="the run has ended")
    found = read_run(database, run)["payload"]["output_payload"]["final_state"]
    assert found["collects"]
    assert found["frozen"] > 10_000


def test_worker_that_is_refused_leaves_no_process(database: Database, stack: Stack) -> None:
    """Its fork server imports the executor while the schema is checked."""
    execute(database, "UPDATE orcheo_dispatch.alembic_version SET version_num = '0004'")
    mark = f"{_MARK}_{os.getpid()}"
    with stack.command("worker", **{mark: "1"}) as worker:
        assert worker.exit_code() == 3
    assert "is at revision 0004" in worker.log
    assert "Traceback" not in worker.log
    until(lambda: _marked(mark) == [], what="all of its processes have ended", seconds=5)


def _marked(variable: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if variable in process.environ():
                found.append(process.pid)
    return found
