"""What a runner has when it starts: all that it is made of, from the fork server, and nothing that is run again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run
from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, insert_runs, read_run
from tests.support.processes.processes import Stack, until

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
