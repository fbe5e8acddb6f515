"""The API executes runs itself, as it does by default, while our dispatcher and worker are beside it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import psycopg
import pytest
from orcheo_backend.app.dependencies import get_repository
from sqlalchemy import Engine

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database, cloned
from tests.support.database.runs import audit, claim_all, everything, insert_runs, read_run, store_of
from tests.support.database.uncommitted import Uncommitted
from tests.support.orcheo.crons import play
from tests.support.orcheo.orcheo_stack import ApiOnDatabase, stack_beside, upload
from tests.support.orcheo.tenants import slots_of
from tests.support.processes.processes import Process, Stack, until
from tests.support.servers.servers import Servers, scratch

RUNS = 120
IN_API = "ORCHEO_INPROCESS_EXECUTION"
_WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
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


def test_api_that_read_a_run_before_a_worker_began_it_does_not_begin_it(orcheo_here: Database) -> None:
    (run_id,) = insert_runs(orcheo_here)
    initialised, turn = threading.Event(), threading.Event()

    async def start() -> None:
        # At its first use the repository locks the table.
        await get_repository().get_run(UUID(run_id))
        initialised.set()
        await asyncio.to_thread(turn.wait)
        await get_repository().mark_run_started(UUID(run_id), actor="worker")

    with (
        store_of(orcheo_here) as (store, engine),
        psycopg.connect(orcheo_here.dsn, autocommit=True) as watcher,
        ThreadPoolExecutor() as pool,
        _set_at_the_end(turn),
    ):
        (claim,) = claim_all(store)
        apis = pool.submit(play, start)
        assert initialised.wait(60)
        with engine.connect() as connection, connection.begin() as ours:
            begun = Store(cast("Engine", Uncommitted(connection))).begin(claim, worker_id=uuid4(), lease=30)
            assert isinstance(begun, Run)
            turn.set()
            until(lambda: _waiting(watcher) == 1, what="the API has read the run and waits to write it")
            ours.commit()
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=f"has begun run {run_id}"):
            apis.result()
    row = read_run(orcheo_here, run_id)
    assert (row["status"], audit(row)) == ("running", ["run_created", "run_started"])


@contextmanager
def _set_at_the_end(event: threading.Event) -> Iterator[None]:
    """Let whoever waits for the event go on, whatever the block ends with."""
    try:
        yield
    finally:
        event.set()


def _waiting(watcher: psycopg.Connection[tuple[object, ...]]) -> int:
    return len(watcher.execute(_WAITING).fetchall())


def _live(api: ApiOnDatabase) -> int:
    return len(everything(api.database, "SELECT FROM workflow_runs WHERE status IN ('pending', 'running')"))


def _begun_once(api: ApiOnDatabase, run: Record) -> bool:
    seen = api.run(run["id"])
    actions = [event["action"] for event in seen["audit_log"]]
    return seen["status"] == "succeeded" and actions == ["run_created", "run_started", "run_succeeded"]


def _warnings(check: Process) -> list[str]:
    return [line for line in check.lines if IN_API in line]
