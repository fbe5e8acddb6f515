"""The API executes runs itself, as it does by default, while our dispatcher and worker are beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ops.real.embedded import EmbeddedRedis
from ops.real.orcheo_client import Record
from tests.databases import Database, cloned
from tests.orcheo_stack import ApiOnDatabase, stack_beside, upload
from tests.processes import Process, Stack, until
from tests.runs import everything
from tests.servers import Servers, scratch
from tests.tenants import slots_of

RUNS = 120
IN_API = "ORCHEO_INPROCESS_EXECUTION"
# An API and a worker of its own; half a minute on an idle machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def api(
    admin: psycopg.Connection[tuple[object, ...]], servers: Servers, template: Database, tmp_path: Path
) -> Iterator[ApiOnDatabase]:
    """An API whose operator has not said where runs execute."""
    with scratch() as folder, EmbeddedRedis(folder) as server, cloned(admin, servers, template.name) as database:
        api = ApiOnDatabase(replace(database, roles=template.roles), server.url, tmp_path)
        del api.variables[IN_API]
        with api:
            api.limit_runs(1000)
            yield api


@contextmanager
def _ours(api: ApiOnDatabase) -> Iterator[Stack]:
    """Our processes, woken by each insert, so that they are as fast as the API."""
    stack = stack_beside(api)
    with stack.command("migrate", "--notify") as migrate:
        assert migrate.exit_code() == 0
    with stack.running("worker"), stack.running("dispatcher"):
        yield stack


def test_no_run_is_executed_both_by_the_api_and_by_a_worker(api: ApiOnDatabase, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    workflow = upload(api, effect="effect")["effect"]
    # Before ours: so the API has certainly executed some.
    alone = api.fire_webhooks(workflow, [{"path": str(effects)}] * 5)
    until(lambda: _live(api) == 0, what="the API has executed its runs")
    with _ours(api) as stack:
        runs = alone + api.fire_webhooks(workflow, [{"path": str(effects)}] * RUNS)
        until(lambda: _live(api) == 0, what="all runs have ended")
        until(lambda: not slots_of(api), what="every slot is returned once")
        lines = [line.split() for line in effects.read_text().splitlines()]
        executed = Counter(run_id for run_id, _ in lines)
        assert executed == Counter(run["id"] for run in runs)
        executors = Counter(pid == str(api.pid) for _, pid in lines)
        print(f"executed by the API: {executors[True]}, by our worker: {executors[False]}")
        assert executors[True] >= len(alone)
        # Else there was no race.
        assert executors[False] > 0
        assert all(_begun_once(api, run) for run in runs)
        with stack.command("check") as check:
            assert check.exit_code() in {0, 1}
            check.finish()
            assert len(_warnings(check)) == 1


def _live(api: ApiOnDatabase) -> int:
    return len(everything(api.database, "SELECT FROM workflow_runs WHERE status IN ('pending', 'running')"))


def _begun_once(api: ApiOnDatabase, run: Record) -> bool:
    seen = api.run(run["id"])
    actions = [event["action"] for event in seen["audit_log"]]
    return seen["status"] == "succeeded" and actions == ["run_created", "run_started", "run_succeeded"]


def _warnings(check: Process) -> list[str]:
    return [line for line in check.lines if IN_API in line]
