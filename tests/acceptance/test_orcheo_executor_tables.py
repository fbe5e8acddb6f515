"""What the executor writes to and reads from Orcheo's tables for many runs at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from orcheo_backend.app.repository import WorkflowVersionNotFoundError

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.books import Books
from orcheo_dispatch.worker.executor.payload import storable
from orcheo_dispatch.worker.executor.protocol import RunRejectedError
from orcheo_dispatch.worker.orcheo.postgres import LazyPool, make_lazy_pool
from orcheo_dispatch.worker.orcheo.saving.outbox import NotWrittenError, Outbox
from orcheo_dispatch.worker.orcheo.saving.saver import RunSaver
from orcheo_dispatch.worker.orcheo.workflow import Versions
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.executions import another, heard, history, new_run, play, signals, traced
from tests.support.runners.local_outside import LocalExecutor, LocalOutside

RUNS = 20


@asynccontextmanager
async def connected(database: Database) -> AsyncIterator[tuple[LazyPool, LocalOutside]]:
    """Yield the pool of a runner and its outside, whose books somebody else's run takes part in."""
    books = Books(database.dsn, running=lambda: 2)
    await books.open()
    pool = make_lazy_pool(database.dsn)
    try:
        yield pool, LocalOutside(books)
    finally:
        await pool.close()
        await books.close()


def saver_of(run_id: str, pool: LazyPool, outside: LocalOutside) -> RunSaver:
    """Return the checkpointer of a run."""
    return RunSaver(pool, Outbox(outside, Claim(run_id, 1)), run_id, JsonPlusSerializer())


async def put(saver: RunSaver, config: RunnableConfig, **values: Any) -> RunnableConfig:
    """Give the saver a checkpoint with these channels."""
    versions: dict[str, Any] = dict.fromkeys(values, "1.5")
    checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
    return await saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, versions)  # type: ignore[arg-type]


def thread(run_id: str, namespace: str = "") -> RunnableConfig:
    """Return the config of a run's thread."""
    return {"configurable": {"thread_id": run_id, "checkpoint_ns": namespace}}


def on_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario."""

    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_langgraph_reads_the_same_checkpoint_as_the_run_that_wrote_it(orcheo_here: Database) -> None:
    async def scenario() -> None:
        async with connected(orcheo_here) as (pool, outside):
            run_id = str(uuid4())
            saver = saver_of(run_id, pool, outside)
            values = {"text": "\u00e9 'x'", "none": None, "count": 2, "messages": [HumanMessage("hi", id="1")]}
            first = await put(saver, thread(run_id), **values, nested={"a": (1, {2})})
            await put(saver, thread(run_id, "inner:1"), **values)
            latest = await put(saver, first, **values, nested={"a": b"\x00\xff"})
            await saver.aput_writes(latest, [("messages", ["b"]), ("text", "\x00")], "task 2", "path")
            await saver.aput_writes(latest, [("__interrupt__", ["wait"])], "task 1", "path")
            await saver.aput_writes(latest, [("__interrupt__", ["wait on"])], "task 1", "path")
            await saver.aput_writes(latest, [("messages", ["not this"])], "task 2", "path")
            remembered = [await saver.aget_tuple(each) for each in (thread(run_id), first, thread(run_id, "inner:1"))]
            await saver.saved()
            langgraph = AsyncPostgresSaver(pool)
            stored = [await langgraph.aget_tuple(each) for each in (thread(run_id), first, thread(run_id, "inner:1"))]
            assert None not in stored
            assert remembered == stored
            assert remembered[0] is not None
            writes = [
                ("task 1", "__interrupt__", ["wait on"]),
                ("task 2", "messages", ["b"]),
                ("task 2", "text", "\x00"),
            ]
            assert remembered[0].pending_writes == writes
            assert [each.config async for each in saver.alist(thread(run_id))] == [latest, first]

    on_loop(scenario)


def test_rows_that_postgres_refuses_cost_their_own_run_alone(orcheo_here: Database) -> None:
    async def scenario() -> None:
        async with connected(orcheo_here) as (pool, outside):
            savers = {name: saver_of(name, pool, outside) for name in ("one", "bad", "two")}
            for name, saver in savers.items():
                await put(saver, thread(name), text="x\x00y" if name == "bad" else "x")
            with pytest.raises(NotWrittenError) as refused:
                await savers["bad"].saved()
            assert issubclass(getattr(psycopg.errors, refused.value.kind), psycopg.DataError)
            await savers["one"].saved()
            await savers["two"].saved()
            written = everything(orcheo_here, "SELECT thread_id FROM checkpoints ORDER BY thread_id")
            assert [row["thread_id"] for row in written] == ["one", "two"]

    on_loop(scenario)


def test_runs_that_end_together_are_written_together(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        first = await new_run("wait")
        executions = [asyncio.create_task(executor.execute(another(first))) for _ in range(RUNS)]
        await heard(signals().waiting, RUNS)
        signals().go.set()
        await asyncio.gather(*executions)
        count = "SELECT count(*) AS rows, count(DISTINCT xmin::text) AS transactions FROM "
        for table in ("checkpoints", "execution_history"):
            found = one(orcheo_here, count + table)
            assert found["rows"] == RUNS
            assert found["transactions"] < RUNS

    play(scenario)


def test_trace_is_seen_while_its_run_waits(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("wait")
        execution = asyncio.create_task(executor.execute(run))
        await heard(signals().waiting)
        await traced(orcheo_here, run)
        assert history(orcheo_here, run)[0]["status"] == "running"
        signals().go.set()
        await execution
        assert history(orcheo_here, run)[0]["status"] == "completed"

    play(scenario)


def test_workflow_archived_since_its_version_was_read_is_rejected(orcheo_here: Database) -> None:
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        await executor.execute(run)
        execute(orcheo_here, "UPDATE workflows SET is_archived = true WHERE id = %s", run.workflow_id)
        with pytest.raises(RunRejectedError):
            await executor.execute(another(run))

    play(scenario)


def test_config_of_a_version_changed_since_it_was_read_is_used(orcheo_here: Database) -> None:
    change = """
    UPDATE workflow_versions SET payload = payload || '{"runnable_config": {"tags": ["new"]}}', updated_at = now()
    """

    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet")
        await executor.execute(run)
        execute(orcheo_here, change)
        later = another(run)
        await executor.execute(later)
        assert history(orcheo_here, run)[0]["tags"] == []
        assert history(orcheo_here, later)[0]["tags"] == ["new"]

    play(scenario)


def test_run_whose_attempts_are_counted_anew_starts_from_the_inputs(orcheo_here: Database) -> None:
    # An operator's `requeue` counts from one again; what the run has checkpointed is there all the same.
    async def scenario(executor: LocalExecutor) -> None:
        run = await new_run("greet", inputs={"body": {"name": "Ada"}, "messages": [{"role": "user", "content": "hi"}]})
        outputs = [storable(await executor.execute(run)) for _ in range(2)]
        assert [len(output["final_state"]["messages"]) for output in outputs] == [1, 1]
        assert [step.get("status") for step in history(orcheo_here, run)[1]] == [None, "completed"] * 2

    play(scenario)


def test_version_that_was_not_sent_is_read_by_its_id(orcheo_here: Database) -> None:
    async def scenario(_: LocalExecutor) -> None:
        runs = [await new_run(act) for act in ("unlock", "greet")]
        pool = make_lazy_pool(orcheo_here.dsn)
        try:
            for run in runs:
                read = await Versions(pool)._read(run.workflow_version_id)
                assert str(read.stored.id) == run.workflow_version_id
            with pytest.raises(WorkflowVersionNotFoundError):
                await Versions(pool)._read(str(uuid4()))
        finally:
            await pool.close()

    play(scenario)
