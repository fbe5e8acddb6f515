"""The executor while runs wait: what stops them, how few connections they hold, and what they outlast."""

from __future__ import annotations

import asyncio

import pytest

from orcheo_dispatch.worker.executor.protocol import Stopped
from orcheo_dispatch.worker.orcheo.postgres import POOL_SIZE
from tests.support.database.databases import Database
from tests.support.database.runs import execute, one
from tests.support.orcheo.executions import another, heard, history, new_run, play, signals, traced
from tests.support.runners.local_outside import LocalExecutor

RUNS = 50
# Of the history store, the vault and the test's own repository.
_OTHER_CONNECTIONS = 6

_OTHERS = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
_COUNT = f"SELECT count(*) AS open FROM pg_stat_activity WHERE {_OTHERS}"
_DISCONNECT = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OTHERS}"


@pytest.mark.parametrize(
    ("stopped", "status", "step"),
    [
        (Stopped("cancelled", "Nobody waits."), "cancelled", {"status": "cancelled", "reason": "Nobody waits."}),
        (Stopped("pending", "Drained."), "cancelled", {"status": "cancelled", "reason": "Drained."}),
        (Stopped("failed", "Took too long."), "error", {"status": "error", "error": "Took too long."}),
    ],
)
def test_stopped_run_stops_its_nodes_and_closes_its_history(
    orcheo_here: Database, stopped: Stopped, status: str, step: dict[str, str]
) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("wait")
        execution = asyncio.create_task(executor.execute(run))
        await heard(signals().waiting)
        execution.cancel(stopped)
        with pytest.raises(asyncio.CancelledError):
            await execution
        await heard(signals().stopped)
        record, steps = history(orcheo_here, run)
        assert (record["status"], record["error"]) == (status, stopped.reason)
        assert steps == [step]

    play(scenario)


def test_run_that_lost_its_fence_stops_its_nodes_and_leaves_its_history(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("wait")
        execution = asyncio.create_task(executor.execute(run))
        await heard(signals().waiting)
        await traced(orcheo_here, run)
        before = history(orcheo_here, run)
        execution.cancel(Stopped(None, "Somebody else has it."))
        with pytest.raises(asyncio.CancelledError):
            await execution
        await heard(signals().stopped)
        assert history(orcheo_here, run) == before

    play(scenario)


def test_fifty_waiting_runs_hold_few_connections(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        first = await new_run("wait")
        executions = [asyncio.create_task(executor.execute(another(first))) for _ in range(RUNS)]
        await heard(signals().waiting, RUNS)
        assert one(orcheo_here, _COUNT)["open"] <= POOL_SIZE + _OTHER_CONNECTIONS
        signals().go.set()
        outputs = await asyncio.gather(*executions)
        assert None not in outputs
        assert one(orcheo_here, _COUNT)["open"] <= POOL_SIZE + _OTHER_CONNECTIONS

    play(scenario)


def test_run_outlasts_connections_that_the_server_closed(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("wait")
        execution = asyncio.create_task(executor.execute(run))
        await heard(signals().waiting)
        execute(orcheo_here, _DISCONNECT)
        signals().go.set()
        assert await execution is not None
        assert history(orcheo_here, run)[0]["status"] == "completed"

    play(scenario)
