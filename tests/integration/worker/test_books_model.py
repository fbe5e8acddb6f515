"""What a worker writes and reads of traces and checkpoints is what models in Python say, for rows made at random."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from orcheo_dispatch.worker.books.heads import Head, read_heads
from orcheo_dispatch.worker.books.postgres import Pool, make_pool, open_pool
from orcheo_dispatch.worker.books.rows import Rows, rows_to_forget, statement_of
from tests.support.database.databases import Database
from tests.support.database.run_states import OTHER, US

_RUNS = [f"r{n}" for n in range(6)]
_SPACES = ("", "inner")
_POINTS = ("c1", "c2")
_FENCE = 5
_ENTRY = """
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, slot, attempts,
                                      refunded, claimed_at, begun_at, heartbeat_at, settled_at, lease_expires_at,
                                      dispatcher_id, worker_id)
VALUES (%(run)s, 'w', 'webhook', %(state)s, %(outcome)s, %(fence)s, 'none', 2, %(refunded)s, now(), now(),
        now(), CASE WHEN %(state)s = 'settled' THEN now() END, CASE WHEN %(state)s <> 'settled' THEN now() END, %(by)s,
        %(worker)s)
"""
_RECORD = """
INSERT INTO execution_history (execution_id, workflow_id, inputs, started_at, status, error, completed_at,
                               trace_completed_at, trace_last_span_at)
VALUES (%s, 'w', '{}', now(), %s, %s, %s, %s, %s)
"""
_STEP = "INSERT INTO execution_history_steps (execution_id, step_index, at, payload) VALUES (%s, %s, now(), %s)"
_CHECKPOINT = """
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES (%s, %s, %s, 'before', %s, %s)
"""
_BLOB = """
INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) VALUES (%s, %s, %s, %s, 't', %s)
"""
_WRITE = """
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
VALUES (%s, %s, %s, %s, '', %s, %s, 't', %s)
"""


def _at(second: int | None) -> str | None:
    return None if second is None else f"2026-01-02T03:04:{second:02}+00:00"


@dataclass
class Kept:
    """What the tables hold of a run; times are the seconds of one minute."""

    record: tuple[str, str | None, int | None, int | None, int | None] | None = None
    """Status, error, time of its end, the same of the trace, and time of its last span."""
    steps: list[int] = field(default_factory=list)
    checkpoints: dict[tuple[str, str], int] = field(default_factory=dict)
    blobs: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    writes: dict[tuple[str, str, str, int], bytes] = field(default_factory=dict)
    entry: tuple[str, int, str | None] | None = None
    """State, fence and worker in the ledger."""
    refunded: int = 0

    @property
    def is_held(self) -> bool:
        """Whether this worker executes it by its claim."""
        return self.entry == ("running", _FENCE, US)


def _at_random(random: Random) -> Kept:
    kept = Kept()
    if random.random() < 0.9:
        state = random.choice(("running", "running", "running", "claimed", "settled"))
        kept.entry = (state, random.choice((_FENCE, _FENCE, 4)), random.choice((US, US, OTHER)))
        kept.refunded = random.choice((0, 1, 2, 3))
    if random.random() < 0.6:
        end = random.choice((None, 10))
        kept.record = (random.choice(("running", "error")), random.choice((None, "e")), end, end, 10)
        kept.steps = [random.randint(1, 99) for _ in range(random.randint(0, 3))]
    for place in product(_SPACES, _POINTS):
        if random.random() < 0.5:
            kept.checkpoints[place] = random.randint(1, 99)
        for index in (-1, 0):
            if random.random() < 0.5:
                kept.writes[*place, "t", index] = random.randbytes(4)
    for key in product(_SPACES, ("a", "b"), ("1", "2")):
        if random.random() < 0.5:
            kept.blobs[key] = random.randbytes(4)
    return kept


def _store(connection: psycopg.Connection[Any], runs: dict[str, Kept]) -> None:
    for run_id, kept in runs.items():
        if kept.entry:
            state, fence, worker = kept.entry
            outcome = "released" if state == "settled" else None
            row = {"run": run_id, "state": state, "outcome": outcome, "fence": fence, "refunded": kept.refunded}
            connection.execute(_ENTRY, {**row, "by": OTHER, "worker": worker})
        if kept.record:
            status, error, *times = kept.record
            connection.execute(_RECORD, (run_id, status, error, *map(_at, times)))
        for place, step in enumerate(kept.steps):
            connection.execute(_STEP, (run_id, place, json.dumps(step)))
        for point, value in kept.checkpoints.items():
            connection.execute(_CHECKPOINT, (run_id, *point, json.dumps({"v": value}), json.dumps({"m": value})))
        for blob, content in kept.blobs.items():
            connection.execute(_BLOB, (run_id, *blob, content))
        for (*at, index), content in kept.writes.items():
            connection.execute(_WRITE, (run_id, *at, index, "ch", content))


def _load(connection: psycopg.Connection[Any], run_id: str) -> Kept:
    def rows(sql: str) -> list[tuple[Any, ...]]:
        return connection.execute(sql.encode(), (run_id,)).fetchall()

    kept = Kept()
    for record in rows(
        "SELECT status, error, EXTRACT(second FROM completed_at)::int, EXTRACT(second FROM trace_completed_at)::int,"
        " EXTRACT(second FROM trace_last_span_at)::int FROM execution_history WHERE execution_id = %s"
    ):
        kept.record = record
    steps = rows("SELECT step_index, payload FROM execution_history_steps WHERE execution_id = %s ORDER BY 1")
    assert [place for place, _ in steps] == [*range(len(steps))]
    kept.steps = [payload for _, payload in steps]
    for space, point, checkpoint, metadata in rows(
        "SELECT checkpoint_ns, checkpoint_id, checkpoint, metadata FROM checkpoints WHERE thread_id = %s"
    ):
        assert checkpoint["v"] == metadata["m"]
        kept.checkpoints[space, point] = checkpoint["v"]
    found = rows("SELECT checkpoint_ns, channel, version, blob FROM checkpoint_blobs WHERE thread_id = %s")
    kept.blobs = {(space, channel, version): blob for space, channel, version, blob in found}
    found = rows("SELECT checkpoint_ns, checkpoint_id, task_id, idx, blob FROM checkpoint_writes WHERE thread_id = %s")
    kept.writes = {(space, point, task, index): blob for space, point, task, index, blob in found}
    for state, fence, worker, refunded in rows(
        "SELECT state, fence, worker_id::text, refunded FROM orcheo_dispatch.dispatch WHERE run_id = %s"
    ):
        kept.entry, kept.refunded = (state, fence, worker), refunded
    return kept


def _write_at_random(random: Random, run_id: str, kept: Kept, rows: Rows, *, may_write: bool) -> None:
    """Add rows of the run; where they may be written, change what is kept as Postgres should."""
    after = kept if may_write else Kept()

    def add(table: str, owner: str = "thread_id", **columns: Any) -> None:
        rows.add(table, json.dumps({owner: run_id, **columns}))

    if random.random() < 0.7:
        ends = random.random() < 0.5
        status, end, error, last = ("completed", 20, "x", 21) if ends else ("running", None, None, 22)
        times = {"completed_at": _at(end), "last_at": _at(last)}
        if random.random() < 0.5:
            more: dict[str, Any] = {"runnable_config": {}, "tags": [], "callbacks": [], "metadata": {}, "inputs": {}}
            more |= {"workflow_id": "w", "started_at": _at(1)}
            add("records", "execution_id", status=status, error=error, **times, **more)
            if after.record is None or ends:
                after.record = (status, error, end, end, last)
        else:
            add("changes", "execution_id", status=status if ends else None, error=error, **times)
            if after.record is not None:
                after.record = ("completed", "x", 20, 20, last) if ends else (*after.record[:4], last)
    if kept.record is not None:
        for _ in range(random.randint(0, 3)):
            step = random.randint(1, 99)
            add("steps", "execution_id", at=_at(1), payload=step)
            after.steps.append(step)
    if random.random() < 0.2:
        rows.extend(rows_to_forget(run_id))
        after.checkpoints, after.blobs, after.writes = {}, {}, {}
        return
    for space, point in product(_SPACES, _POINTS):
        where = {"checkpoint_ns": space, "checkpoint_id": point}
        if random.random() < 0.5:
            value = random.randint(1, 99)
            add("checkpoints", **where, checkpoint={"v": value}, metadata={"m": value})
            after.checkpoints[space, point] = value
        for index in (-1, 0):
            if random.random() < 0.5:
                row = {"task_id": "t", "task_path": "", "idx": index, "channel": "ch", "type": "t"}
                content = random.randbytes(4)
                rows.add_bytes("writes", json.dumps({"thread_id": run_id, **where, **row}), content)
                if index < 0 or (space, point, "t", index) not in after.writes:
                    after.writes[space, point, "t", index] = content
    for space, channel, version in product(_SPACES, ("a", "b"), ("1", "2")):
        if random.random() < 0.3:
            content = random.randbytes(4)
            where = {"checkpoint_ns": space, "channel": channel, "version": version, "type": "t"}
            rows.add_bytes("blobs", json.dumps({"thread_id": run_id, **where}), content)
            after.blobs.setdefault((space, channel, version), content)


@contextmanager
def _undone(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.dsn) as connection, connection.transaction(force_rollback=True):
        yield connection


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("part", range(2))
def test_rows_of_runs_that_are_held_are_written_as_the_model_says(database: Database, part: int, claimed: bool) -> None:
    for seed in range(40):
        random = Random(f"{part} {seed}")
        runs = {run_id: _at_random(random) for run_id in _RUNS}
        with _undone(database) as connection:
            _store(connection, runs)
            rows = Rows(claims=dict.fromkeys(_RUNS[1:], _FENCE) if claimed else {})
            held = {run_id for run_id in rows.claims if runs[run_id].is_held}
            for run_id, kept in runs.items():
                _write_at_random(random, run_id, kept, rows, may_write=not claimed or run_id in held)
            if claimed:
                rows.progressed = {*random.sample(_RUNS, random.randint(0, 6))}
                for run_id in held & rows.progressed:
                    runs[run_id].refunded = max(2, runs[run_id].refunded)
            found = connection.execute(*statement_of(rows, UUID(US))).fetchall()
            assert {row[0] for row in found if claimed} == held
            for run_id, kept in runs.items():
                assert _load(connection, run_id) == kept, (seed, run_id)


def _pieces(head: Head) -> tuple[set[tuple[Any, ...]], set[tuple[Any, ...]]]:
    """Return its blobs and its pending writes, in no order."""
    return (
        {(each.channel, each.version, each.content) for each in head.blobs},
        {(each.task_id, each.place, each.channel, each.content) for each in head.writes},
    )


@pytest.mark.parametrize("seed", range(6))
def test_last_checkpoints_are_read_as_the_model_reads_them(database: Database, seed: int) -> None:
    random = Random(seed)
    runs = {run_id: _at_random(random) for run_id in _RUNS}
    versions = {key: {"a": random.choice("12"), "b": random.choice("12")} for key in product(_RUNS, _SPACES, _POINTS)}
    with psycopg.connect(database.dsn) as connection:
        _store(connection, runs)
        for key, channels in versions.items():
            checkpoint = json.dumps({"channel_versions": channels})
            connection.execute(
                "UPDATE checkpoints SET checkpoint = %s WHERE (thread_id, checkpoint_ns, checkpoint_id) = (%s, %s, %s)",
                (checkpoint, *key),
            )

    async def heads() -> dict[str, list[Head]]:
        pool = make_pool(Pool, database.dsn, name="test", min_size=1, max_size=1)
        await open_pool(pool)
        try:
            return await read_heads(pool, [*_RUNS[1:], "no run"])
        finally:
            await pool.close()

    found = {(run_id, head.namespace): head for run_id, each in asyncio.run(heads()).items() for head in each}
    expected = {}
    for run_id, kept in runs.items():
        for space in _SPACES:
            points = [point for of, point in kept.checkpoints if of == space]
            if points and run_id != _RUNS[0]:
                expected[run_id, space] = (kept, max(points))
    assert found.keys() == expected.keys()
    for (run_id, space), (kept, point) in expected.items():
        head = found[run_id, space]
        channels = versions[run_id, space, point]
        assert (head.checkpoint_id, json.loads(head.checkpoint)["channel_versions"]) == (point, channels)
        blobs = {
            (channel, version, blob)
            for (of, channel, version), blob in kept.blobs.items()
            if of == space and channels[channel] == version
        }
        writes = {
            (task, index, "ch", blob)
            for (of, at, task, index), blob in kept.writes.items()
            if (of, at) == (space, point)
        }
        assert _pieces(head) == (blobs, writes)
