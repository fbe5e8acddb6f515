"""`adopt` beside the real API, and the real worker of Orcheo's: killed with runs in flight, or alive."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.broker.slots import COUNTER
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute
from tests.support.orcheo.orcheo_stack import database_of, stack_beside, start_afresh, upload
from tests.support.processes.processes import Process, Stack, until

STOCK = [
    *("-m", "celery", "-A", "orcheo_backend.worker.celery_app", "worker"),
    *("--pool=prefork", "--concurrency=2", "--loglevel=INFO"),
]
# As if all that is in the tables had happened hours ago.
_AGE = """
UPDATE workflow_runs AS r
   SET updated_at = at, payload = r.payload || jsonb_build_object('updated_at', at)
  FROM (SELECT id, updated_at - interval '3 hours' AS at FROM workflow_runs) AS a
 WHERE a.id = r.id
"""
_AGE_STEPS = "UPDATE execution_history_steps SET at = at - interval '3 hours'"


@pytest.fixture
def stack(orcheo: OrcheoApi) -> Stack:
    """Our processes beside the API."""
    start_afresh(orcheo)
    return stack_beside(orcheo)


@pytest.fixture
def workflow(orcheo: OrcheoApi, stack: Stack) -> str:
    """A workflow that takes a step and waits."""
    return upload(orcheo, pause="pause")["pause"]


@pytest.fixture
def greet(orcheo: OrcheoApi, stack: Stack) -> str:
    """A workflow that ends at once."""
    return upload(orcheo, greet="greet")["greet"]


@pytest.fixture
def counters(orcheo: OrcheoApi) -> Iterator[redis.Redis]:
    """The Redis in which the API counts run slots."""
    with redis.Redis.from_url(orcheo.variables["ORCHEO_REDIS_URL"]) as client:
        yield client


def test_runs_of_a_killed_worker_are_shown_then_failed_and_their_slots_come_back(
    orcheo: OrcheoApi, stack: Stack, workflow: str, greet: str, counters: redis.Redis
) -> None:
    database = database_of(orcheo)
    _leave_two_running(orcheo, stack, workflow)
    waiting = orcheo.fire_webhook(greet, {"name": "Ada"})["id"]
    young = adopted(stack, "--older-than", "1h", expect=0)
    assert young["left_behind"]["running"] == young["left_behind"]["pending"] == []
    execute(database, _AGE)
    # A step a moment ago is a sign of life, whatever the run's own row says.
    assert adopted(stack, expect=0)["left_behind"]["running"] == []
    execute(database, _AGE_STEPS)

    before = _tables(database)
    dry = adopted(stack, expect=1)
    assert _tables(database) == before
    left = dry["left_behind"]
    assert len(left["running"]) == 2
    assert [run["run_id"] for run in left["pending"]] == [waiting]
    assert (left["pushed"], left["slots"], left["workers"], dry["repaired"]) == (1, [], [], None)

    runs = [run["run_id"] for run in left["running"]]
    repaired = adopted(stack, "--repair", "--yes", expect=0)["repaired"]
    assert {each["run_id"]: each["status_after"] for each in repaired["runs"]} == dict.fromkeys(runs, "failed")
    for run_id in runs:
        shown = orcheo.run(run_id)
        assert (shown["status"], shown["error"]) == ("failed", "Left running by a worker that is gone.")
        assert orcheo.history(run_id)["status"] == "error"
    with stack.running("dispatcher"):
        until(lambda: _counted(counters) == 1, what="the slots of both come back")
        with stack.running("worker"):
            until(lambda: orcheo.run(waiting)["status"] == "succeeded", what="the pending run succeeds")
            until(lambda: _counted(counters) == 0, what="its slot comes back")
    assert adopted(stack, expect=0)["left_behind"]["slots"] == []


def test_runs_left_running_are_executed_again_and_old_pending_ones_cancelled_where_told_so(
    orcheo: OrcheoApi, stack: Stack, workflow: str, greet: str, counters: redis.Redis
) -> None:
    database = database_of(orcheo)
    _leave_two_running(orcheo, stack, workflow)
    waiting = orcheo.fire_webhook(greet, {"name": "Ada"})["id"]
    execute(database, _AGE)
    execute(database, _AGE_STEPS)
    adopted(stack, "--repair", "--yes", "--running", "requeue", "--pending", "cancel", expect=0)
    assert orcheo.run(waiting)["status"] == "cancelled"
    assert [row["status"] for row in everything(database, "SELECT status FROM workflow_runs ORDER BY status")] == [
        "cancelled",
        "pending",
        "pending",
    ]
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: _counted(counters) == 0, what="every slot comes back")
    assert {row["status"] for row in everything(database, "SELECT status FROM workflow_runs")} == {
        "cancelled",
        "succeeded",
    }


def test_run_of_a_worker_that_is_alive_is_left_alone(orcheo: OrcheoApi, stack: Stack, workflow: str) -> None:
    database = database_of(orcheo)
    with Process(STOCK, stack.environment) as stock:
        stock.saw("ready.", seconds=200)
        run_id = _begin(orcheo, database, workflow)
        execute(database, _AGE)
        execute(database, _AGE_STEPS)
        found = adopted(stack, "--repair", "--yes", expect=0)["left_behind"]
        assert (found["running"], found["held"], len(found["workers"])) == ([], [run_id], 1)
        assert orcheo.run(run_id)["status"] == "running"


def test_slots_that_no_run_holds_are_given_back_once_beside_a_busy_api(
    orcheo: OrcheoApi, stack: Stack, greet: str, counters: redis.Redis
) -> None:
    runs = [orcheo.fire_webhook(greet, {"name": "Ada"})["id"] for _ in range(4)]
    workspace = orcheo.run(runs[0])["workspace_id"]
    counters.incrby(COUNTER + workspace, 3)
    (slots,) = adopted(stack, expect=1)["left_behind"]["slots"]
    assert slots == {"workspace_id": workspace, "counted": 7, "holders": 4, "leaked": 3}
    with (
        stack.command("adopt", "--repair", "--yes", "--json") as one,
        stack.command("adopt", "--repair", "--yes") as two,
    ):
        runs += [orcheo.fire_webhook(greet, {"name": "Ada"})["id"] for _ in range(30)]
        one.exit_code()
        two.exit_code()
    assert _counted(counters) == len(runs)
    assert adopted(stack, expect=0)["left_behind"]["slots"] == []
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: _counted(counters) == 0, what="every slot comes back")


def test_nothing_is_called_left_behind_where_workers_cannot_be_asked(orcheo: OrcheoApi, stack: Stack) -> None:
    with stack.command("adopt", REDIS_URL="redis://127.0.0.1:1/0") as process:
        assert process.exit_code() == 4


def adopted(stack: Stack, *options: str, expect: int) -> Any:
    """Run the command; return what it prints."""
    with stack.command("adopt", *options, "--json") as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
    return json.loads(process.log[process.log.index("{") :])


def _leave_two_running(orcheo: OrcheoApi, stack: Stack, workflow: str) -> None:
    with Process(STOCK, stack.environment) as stock:
        stock.saw("ready.", seconds=200)
        # One after the other: processes of the stock worker may deadlock when two of them first open its stores.
        _begin(orcheo, database_of(orcheo), workflow)
        _begin(orcheo, database_of(orcheo), workflow, already=1)
        stock.signal_group(signal.SIGKILL)


def _begin(orcheo: OrcheoApi, database: Database, workflow: str, *, already: int = 0) -> str:
    run_id: str = orcheo.fire_webhook(workflow, {})["id"]
    until(
        lambda: len(everything(database, "SELECT FROM workflow_runs WHERE status = 'running'")) == already + 1,
        what="the run begins",
    )
    until(lambda: _has_trace(database, run_id), what="its trace begins")
    return run_id


def _has_trace(database: Database, run_id: str) -> bool:
    return bool(everything(database, "SELECT FROM execution_history_steps WHERE execution_id = %s", run_id))


def _counted(counters: redis.Redis) -> int:
    found = [int(counters.get(key) or 0) for key in counters.keys(f"{COUNTER}*")]
    return sum(found)


def _tables(database: Database) -> list[Any]:
    with psycopg.connect(database.dsn) as connection:
        return [
            connection.execute(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1").fetchall()
            for table in ("workflow_runs", "orcheo_dispatch.dispatch", "execution_history")
        ]
