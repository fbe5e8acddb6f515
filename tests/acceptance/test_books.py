"""What the main process of a worker reads and writes for its runners: no run pays for another's rows or words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from orcheo_backend.app.dependencies import get_repository

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.books import Books
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from orcheo_dispatch.worker.books.workflows import MAX_VERSIONS, KnownVersions, Provided
from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.frames import Start
from orcheo_dispatch.worker.orcheo.saving.outbox import MAX_WRITE_BYTES, NotWrittenError, Outbox, parts_of
from tests.support.database.databases import Database
from tests.support.database.runs import everything, execute, one
from tests.support.orcheo.executions import new_run
from tests.support.runners.local_outside import LocalOutside

MINE, OTHER = str(uuid4()), str(uuid4())
CLAIM = Claim(MINE, 1)
_AT = "2026-01-02T03:04:05+00:00"


def on_books(database: Database, scenario: Callable[[Books], Awaitable[None]], *, running: int = 2) -> None:
    """Run a scenario with open books."""

    async def play() -> None:
        books = Books(database.dsn, running=lambda: running)
        await books.open()
        try:
            await scenario(books)
        finally:
            await books.close()
            await cast("Any", get_repository()).close()

    asyncio.run(play())


def row(table: str, run_id: str, **more: Any) -> str:
    """Return a row that is complete enough to be stored."""
    columns: dict[str, dict[str, Any]] = {
        "records": {"workflow_id": "w", "status": "running", "started_at": _AT, "last_at": _AT, "inputs": {}}
        | {"runnable_config": {}, "tags": [], "callbacks": [], "metadata": {}},
        "changes": {"status": "completed", "completed_at": _AT, "last_at": _AT},
        "steps": {"at": _AT, "payload": {}},
        "blobs": {"checkpoint_ns": "", "channel": "a", "version": "1", "type": "bytes"},
        "checkpoints": {"checkpoint_ns": "", "checkpoint_id": "c", "checkpoint": {}, "metadata": {}},
        "writes": {"checkpoint_ns": "", "checkpoint_id": "c", "task_id": "t", "task_path": "", "idx": 0}
        | {"channel": "a", "type": "bytes"},
    }
    owner = "execution_id" if table in ("records", "changes", "steps") else "thread_id"
    return json.dumps({owner: run_id, **columns[table], **more})


def rows(table: str, *texts: str) -> Rows:
    """Return rows of one table."""
    found = Rows()
    for text in texts:
        if table in ("blobs", "writes"):
            found.add_bytes(table, text, b"content")
        else:
            found.add(table, text)
    return found


TABLES = ("records", "changes", "steps", "blobs", "checkpoints", "writes")
_STORED = {
    "records": ("execution_history", "execution_id"),
    "changes": ("execution_history", "execution_id"),
    "steps": ("execution_history_steps", "execution_id"),
    "blobs": ("checkpoint_blobs", "thread_id"),
    "checkpoints": ("checkpoints", "thread_id"),
    "writes": ("checkpoint_writes", "thread_id"),
}


def stored(database: Database, run_id: str) -> dict[str, list[dict[str, Any]]]:
    """Return all that the tables hold of a run."""
    return {
        table: everything(database, f"SELECT * FROM {table} WHERE {owner} = %s", run_id)
        for table, owner in set(_STORED.values())
    }


def _twice(table: str) -> str:
    """Return a row that names its own run first, and then another one, which is what Postgres would store."""
    owner = _STORED[table][1]
    return f'{{"{owner}": "{MINE}", {row(table, OTHER)[1:]}'


def _escaped(table: str) -> str:
    owner = _STORED[table][1]
    return f'{{"{owner}": "{MINE}", {row(table, OTHER)[1:].replace(owner, owner.replace("e", chr(92) + "u0065"))}'


@pytest.mark.parametrize(
    ("forge", "refusal"),
    [
        (lambda table: [row(table, OTHER)], "ForeignRows"),
        (lambda table: [row(table, MINE), row(table, OTHER)], "ForeignRows"),
        (lambda table: [_twice(table)], "ForeignRows"),
        (lambda table: [_escaped(table)], "ForeignRows"),
        (lambda table: [f"{row(table, MINE)}, {row(table, OTHER)}"], "MalformedRows"),
        (lambda table: [f"[{row(table, OTHER)}]"], "MalformedRows"),
        (lambda table: [row(table, cast("Any", None))], "MalformedRows"),
        (lambda table: ["{}"], "MalformedRows"),
        (lambda table: [""], "MalformedRows"),
        (lambda table: [row(table, MINE)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"], "MalformedRows"),
    ],
    ids=["foreign", "one of two", "twice", "escaped", "two in one", "list", "null", "empty", "nothing", "deep"],
)
def test_rows_of_another_run_are_refused(
    orcheo_here: Database, forge: Callable[[str], list[str]], refusal: str
) -> None:
    async def scenario(books: Books) -> None:
        assert await books.write(Claim(OTHER, 1), rows("records", row("records", OTHER)), hasten=True) is None
        before = stored(orcheo_here, OTHER)
        for table in TABLES:
            assert await books.write(CLAIM, rows(table, *forge(table)), hasten=True) == refusal
            assert stored(orcheo_here, OTHER) == before
            assert not any(stored(orcheo_here, MINE).values())

    on_books(orcheo_here, scenario)


@pytest.mark.parametrize(
    "forged",
    [
        Rows({"workflow_runs": [row("steps", MINE)]}),
        Rows({"records; DELETE FROM workflow_runs": [row("records", MINE)]}),
        Rows({"blobs": [row("blobs", MINE)]}),
        Rows({"blobs": [row("blobs", MINE)]}, {"blobs": []}),
        Rows({"blobs": [row("blobs", MINE)]}, {"blobs": [b"", b""]}),
        Rows({"steps": [row("steps", MINE)]}, {"steps": [b""]}),
        Rows({"steps": [row("steps", MINE)]}, {"blobs": [b"moved"]}),
        Rows({}, {"writes": [b"moved"]}),
    ],
)
def test_rows_that_no_executor_sends_are_refused(orcheo_here: Database, forged: Rows) -> None:
    async def scenario(books: Books) -> None:
        good = books.write(Claim(OTHER, 1), rows("blobs", row("blobs", OTHER)), hasten=False)
        assert await books.write(CLAIM, forged, hasten=True) == "MalformedRows"
        assert await good is None
        assert stored(orcheo_here, OTHER)["checkpoint_blobs"][0]["blob"] == b"content"

    on_books(orcheo_here, scenario)


def test_rows_of_the_run_itself_are_written(orcheo_here: Database) -> None:
    async def scenario(books: Books) -> None:
        assert await books.write(CLAIM, rows("records", row("records", MINE)), hasten=True) is None
        for table in TABLES:
            assert await books.write(CLAIM, rows(table, row(table, MINE)), hasten=True) is None
            assert stored(orcheo_here, MINE)[_STORED[table][0]]

    on_books(orcheo_here, scenario)


@pytest.mark.parametrize(
    "text", [row("steps", MINE, payload="\x00"), row("steps", MINE, at="not a time")], ids=["nul", "time"]
)
def test_rows_that_postgres_refuses_are_named_by_class_and_cost_no_other_run(orcheo_here: Database, text: str) -> None:
    async def scenario(books: Books) -> None:
        others = [Claim(str(uuid4()), 1) for _ in range(5)]
        for each in (*others, CLAIM):
            await books.write(each, rows("records", row("records", each.run_id)), hasten=True)
        good = [books.write(each, rows("steps", row("steps", each.run_id)), hasten=False) for each in others]
        error = await books.write(CLAIM, rows("steps", text), hasten=True)
        assert error is not None
        assert issubclass(getattr(psycopg.errors, error), psycopg.Error)
        assert await asyncio.gather(*good) == [None] * 5
        for each in others:
            assert len(stored(orcheo_here, each.run_id)["execution_history_steps"]) == 1

    on_books(orcheo_here, scenario)


def test_abandoned_run_writes_nothing_more(orcheo_here: Database) -> None:
    async def scenario(books: Books) -> None:
        dropped = books.write(CLAIM, rows("records", row("records", MINE)), hasten=False)
        kept = books.write(Claim(OTHER, 1), rows("records", row("records", OTHER)), hasten=False)
        books.abandon(CLAIM)
        books.hasten()
        await asyncio.gather(dropped, kept)
        assert not any(stored(orcheo_here, MINE).values())
        assert stored(orcheo_here, OTHER)["execution_history"]

    on_books(orcheo_here, scenario)


def test_version_is_given_once_and_again_when_it_is_changed(orcheo_here: Database) -> None:
    change = "UPDATE workflow_versions SET updated_at = now() WHERE id = %s"

    async def scenario(books: Books) -> None:
        run, known = await new_run("greet"), KnownVersions()

        async def provided() -> Provided:
            found = await books.provide(run, known.known_at(run.workflow_version_id))
            known.give(found)
            return Provided.decode(found.encode())

        first = await provided()
        assert first.payload is not None
        assert json.loads(first.payload)["id"] == run.workflow_version_id
        assert first.rejected is None
        assert not first.version_missing
        assert (first.has_checkpoints, first.has_history) == (False, False)
        assert (await provided()).payload is None
        execute(orcheo_here, change, run.workflow_version_id)
        assert (await provided()).payload == first.payload
        await books.write(run.claim, rows("records", row("records", run.run_id)), hasten=True)
        await books.write(run.claim, rows("checkpoints", row("checkpoints", run.run_id)), hasten=True)
        latest = await provided()
        assert (latest.has_checkpoints, latest.has_history, latest.payload) == (True, True, None)

    on_books(orcheo_here, scenario)


def test_runner_is_taken_to_know_as_many_versions_as_it_keeps() -> None:
    known = KnownVersions()
    for number in range(MAX_VERSIONS + 1):
        known.give(Provided(None, False, str(number), _AT, None, False, False, _AT, 0.0))
    assert known.known_at("0") is None
    assert known.known_at("1") == _AT
    assert known.known_at(str(MAX_VERSIONS)) == _AT


@pytest.mark.parametrize(
    "spoil",
    [
        {"run_id": "a\x00b"},
        {"workflow_id": "\ud800"},
        {"workflow_version_id": "\x00"},
    ],
)
def test_question_that_postgres_refuses_costs_its_own_run_alone(orcheo_here: Database, spoil: dict[str, str]) -> None:
    async def scenario(books: Books) -> None:
        run = await new_run("greet")
        runs: list[Run] = [replace(run, run_id=str(uuid4())) for _ in range(20)]
        runs.insert(7, replace(run, **cast("Any", spoil)))
        answers = await asyncio.gather(*(books.provide(each, None) for each in runs), return_exceptions=True)
        assert isinstance(answers.pop(7), Exception)
        assert all(isinstance(each, Provided) and each.payload is not None for each in answers)
        known = await asyncio.gather(books.provide(run, None), books.provide(run, "no time"), return_exceptions=True)
        assert isinstance(known[0], Provided)
        assert isinstance(known[1], psycopg.DataError)

    on_books(orcheo_here, scenario)


def test_reading_and_writing_outlast_connections_that_the_server_closed(orcheo_here: Database) -> None:
    disconnect = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'orcheo-dispatch worker'
    """

    async def scenario(books: Books) -> None:
        run = await new_run("greet")
        for _ in range(3):
            assert everything(orcheo_here, disconnect)
            read, written = await asyncio.gather(
                books.provide(run, None), books.write(CLAIM, rows("records", row("records", MINE)), hasten=True)
            )
            assert read.payload is not None
            assert written is None

    on_books(orcheo_here, scenario)


def test_frame_carries_what_was_provided() -> None:
    provided = Provided(None, False, "v", _AT, b"\x00{}", True, False, _AT, 1.5)
    frame = Start(1, {}, b"", provided.encode())
    assert frame.provided is not None
    assert Provided.decode(frame.provided) == provided


# --- the outbox of a run


class _Slow:
    """An outside whose answers the test gives."""

    def __init__(self) -> None:
        self.sent: list[tuple[Rows, bool, asyncio.Future[str | None]]] = []
        self.hastened = 0

    def provided(self, claim: Claim) -> bytes | None:
        return None

    def write(self, claim: Claim, rows: Rows, *, hasten: bool) -> asyncio.Future[str | None]:
        self.sent.append((rows, hasten, asyncio.get_running_loop().create_future()))
        return self.sent[-1][2]

    def resumed(self, tasks: int) -> None: ...

    def hasten(self) -> None:
        self.hastened += 1


class _Some(Unit):
    """A unit with these rows."""

    def __init__(self, *steps: str) -> None:
        super().__init__()
        self.steps = list(steps)

    def rows(self) -> Rows:
        return rows("steps", *self.steps)


def on_outbox(scenario: Callable[[Outbox, _Slow], Awaitable[None]]) -> None:
    """Run a scenario with an outbox."""

    async def play() -> None:
        slow = _Slow()
        await scenario(Outbox(slow, CLAIM), slow)

    asyncio.run(play())


def test_unit_grows_while_an_earlier_one_is_not_written() -> None:
    async def scenario(outbox: Outbox, slow: _Slow) -> None:
        first, second = _Some("1"), _Some("2")
        outbox.add(first)
        outbox.hasten()
        outbox.add(second)
        outbox.hasten()
        second.steps.append("3")
        assert [sent.texts["steps"] for sent, *_ in slow.sent] == [["1"]]
        slow.sent[0][2].set_result(None)
        await first.written
        assert [(sent.texts["steps"], hasten) for sent, hasten, _ in slow.sent] == [(["1"], True), (["2", "3"], True)]
        slow.sent[1][2].set_result("DiskFull")
        error = await second.written
        assert isinstance(error, NotWrittenError)
        assert error.kind == "DiskFull"

    on_outbox(scenario)


def test_units_that_are_hastened_together_hasten_with_the_last() -> None:
    async def scenario(outbox: Outbox, slow: _Slow) -> None:
        for name in ("1", "2", "3"):
            outbox.add(_Some(name))
        outbox.hasten()
        assert [hasten for _, hasten, _ in slow.sent] == [False, False, True]

    on_outbox(scenario)


def test_unit_that_is_sent_without_haste_can_be_hastened() -> None:
    async def scenario(outbox: Outbox, slow: _Slow) -> None:
        unit = _Some("1")
        outbox.add(unit)
        async with asyncio.timeout(5):
            while not slow.sent:
                await asyncio.sleep(0.01)
        assert not slow.sent[0][1]
        outbox.hasten()
        outbox.hasten()
        assert slow.hastened == 1
        slow.sent[0][2].set_result(None)
        assert await unit.written is None
        later = _Some("2")
        outbox.add(later)
        outbox.close()
        assert [hasten for _, hasten, _ in slow.sent] == [False, False]

    on_outbox(scenario)


def test_dropped_unit_is_not_sent() -> None:
    async def scenario(outbox: Outbox, slow: _Slow) -> None:
        unit = _Some("1")
        outbox.add(unit)
        outbox.drop(unit)
        outbox.close()
        assert await unit.written is None
        assert slow.sent == []

    on_outbox(scenario)


def test_large_unit_is_written_in_parts_and_its_checkpoint_last(orcheo_here: Database) -> None:
    found = Rows()
    found.add("checkpoints", row("checkpoints", MINE))
    for number in range(5):
        found.add_bytes("blobs", row("blobs", MINE, version=str(number)), bytes(MAX_WRITE_BYTES // 2))
    found.add_bytes("blobs", row("blobs", MINE, version="huge"), bytes(MAX_WRITE_BYTES + 1))
    parts = list(parts_of(found))
    assert sum(len(part.texts.get("blobs", [])) for part in parts) == 6
    assert [table for part in parts for table in part.texts][-1] == "checkpoints"
    assert all(part.size() <= MAX_WRITE_BYTES or len(part.texts.get("blobs", [])) == 1 for part in parts)

    class Large(Unit):
        def rows(self) -> Rows:
            return found

    async def scenario(books: Books) -> None:
        outbox, unit = Outbox(LocalOutside(books), CLAIM), Large()
        outbox.add(unit)
        outbox.hasten()
        assert await unit.written is None
        sizes = one(orcheo_here, "SELECT count(*) AS rows, sum(length(blob)) AS size FROM checkpoint_blobs")
        assert sizes == {"rows": 6, "size": 5 * (MAX_WRITE_BYTES // 2) + MAX_WRITE_BYTES + 1}
        assert stored(orcheo_here, MINE)["checkpoints"]

    on_books(orcheo_here, scenario)
