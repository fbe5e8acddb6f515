"""Write the rows of a process's runs to Orcheo's tables, for many runs in one statement.

The idea is that of group commit: D. DeWitt et al., *Implementation Techniques for Main Memory Database Systems*, 1984.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

from orcheo_dispatch.shared.database.sqlstate import answered
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.books.postgres import may_pass
from orcheo_dispatch.worker.books.rows import Connections, Rows, statement_of
from orcheo_dispatch.worker.books.units import Sized, Unit, batches, by_tables, tell, without_rows

SOON_SECONDS = 0.1
"""Maximum delay of rows that no caller waits for (seconds), so that a trace is visible during its run."""

LINGER_SECONDS = 0.01
"""Time that urgent rows wait for rows of other runs (seconds), per run that the last statement wrote rows for."""
MAX_LINGER_SECONDS = 0.04

PATIENCE_SECONDS = 30.0
"""How long statements are retried after transient errors, such as an outage, a conflict or a lock (seconds)."""
LOCK_SECONDS = 1.0
STATEMENT_SECONDS = 5.0
PARTS = 8
STALL_SECONDS = 60.0
"""Longer than the wait for a connection and the statement after it may take (seconds)."""
_SECONDS_A_BYTE = 1 / 1_000_000
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 2.0
_ALONE_PAUSE_SECONDS = 0.2


class GroupCommit:
    """Write the units of all runs of a process, one statement at a time.

    A statement is retried for half a minute while Postgres is unavailable. It waits for a lock for `LOCK_SECONDS`, and
    ends after `STATEMENT_SECONDS` plus additional time for many bytes. If Postgres refuses it because of one of several
    units, the batch is divided into `PARTS` parts until that unit is alone. If its error is transient, such as a locked
    row, the unit is then retried for half a minute, concurrently with the statements for the others. Each statement
    holds one connection, and at most two are held at a time.

    Only `close` ends it: if the writing task is cancelled, another one continues with the rows in progress.
    """

    def __init__(self, pool: Connections, *, running: Callable[[], int], worker_id: UUID | None = None) -> None:
        """With `worker_id`, rows with claims are written only while that worker holds the runs."""
        self._pool = pool
        self._worker_id = worker_id
        self._running = running
        """Returns the number of runs in progress: if there is only one, urgent rows are written at once."""
        self._queued: list[Unit] = []
        self._in_hand: list[Unit] = []
        self._alone: list[tuple[Sized, float]] = []
        """Units that are retried by themselves, each until this `time.monotonic()`."""
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._moved_at = time.monotonic()
        self._runs_of_last = 1
        """Number of runs that the last statements wrote rows for."""

    @property
    def makes_progress(self) -> bool:
        """Whether statements begin while units wait, regardless of whether Postgres accepts them."""
        return not (self._queued or self._in_hand or self._alone) or time.monotonic() - self._moved_at < STALL_SECONDS

    def add(self, unit: Unit) -> None:
        """Queue the unit, to be written soon."""
        if not (self._queued or self._in_hand or self._alone):
            self._moved_at = time.monotonic()
        self._queued.append(unit)
        self._write_within(SOON_SECONDS)

    def drop(self, unit: Unit) -> None:
        """Do not write the unit, unless its statement has been made."""
        if not unit.sealed:
            self._queued.remove(unit)
            unit.sealed = True
            unit.written.set_result(None)

    def hasten(self) -> None:
        """Write all queued units now; if other runs are in progress, wait briefly for their rows.

        The wait is longer if the last statement wrote rows of several runs, because then others are expected soon, and
        most of the CPU time of a statement does not depend on its number of rows.
        """
        seconds = min(LINGER_SECONDS * self._runs_of_last, MAX_LINGER_SECONDS)
        self._write_within(seconds if self._running() > 1 else 0)

    async def close(self) -> None:
        """Write all queued units."""
        while self._queued or self._in_hand or self._alone:
            self._write_within(0)
            waiting = [*self._queued, *self._in_hand, *(unit for (unit, _), _ in self._alone)]
            await asyncio.wait([unit.written for unit in waiting])
            # The tasks record what has been written a moment later.
            await asyncio.sleep(0)

    def _write_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._writing is None and self._queued:
            self._writing = asyncio.get_running_loop().create_task(self._write_queued())
            self._writing.add_done_callback(self._stopped_writing)

    def _stopped_writing(self, task: asyncio.Task[None]) -> None:
        """Continue with the rows of a task that was cancelled or failed: they may be written a second time."""
        self._writing = None
        failed = task.cancelled() or task.exception() is not None
        left = [unit for unit in self._in_hand if not unit.written.done()]
        self._in_hand = []
        if failed:
            self._queued = [*left, *self._queued]
            log.warning("group_commit_interrupted", units=len(left))
        if self._queued:
            self._write_within(SOON_SECONDS if failed else 0)

    async def _write_queued(self) -> None:
        """Write the queued units, and those that are due by then."""
        while self._queued and self._timer is None:
            self._in_hand, self._queued = self._queued, []
            self._runs_of_last = len({unit.run_id for unit in self._in_hand})
            await self._write(self._in_hand)
            self._in_hand = []

    async def _write(self, units: Sequence[Unit]) -> None:
        sized: list[Sized] = []
        waiting = {unit.run_id for (unit, _), _ in self._alone if unit.run_id is not None}
        for unit in units:
            unit.sealed = True
            try:
                each = unit, unit.rows()
            except Exception as error:  # noqa: BLE001 - as below; a fault of ours with one run is none of the others'
                tell(unit, error)
                continue
            if unit.run_id in waiting:
                self._try_alone(each)
            else:
                sized.append(each)
        for some in batches(sized):
            await self._write_batch(some)

    async def _write_batch(self, batch: Sequence[Sized]) -> None:
        parts = deque([batch])
        checked = False
        while parts:
            part = parts.popleft()
            error = await self._outlast(part)
            if error is not None and answered(error) and len(part) > 1:
                # Does Postgres refuse the statement itself, rather than one of the units?
                checked = checked or await self._outlast(without_rows(part)) is None
                if checked:
                    size = -(-len(part) // PARTS)
                    parts.extend(part[start : start + size] for start in range(0, len(part), size))
                    continue
                # The cause may be a table that only some of the units use.
                separate = by_tables(part)
                if len(separate) > 1:
                    parts.extend(separate)
                    continue
            for unit, rows in part:
                if error is not None and may_pass(error) and answered(error):
                    self._try_alone((unit, rows))
                else:
                    tell(unit, error, rows)

    async def _outlast(self, part: Sequence[Sized]) -> Exception | None:
        """Write these units together, retrying while Postgres is unavailable; return the error if that fails."""
        together = Rows()
        for _, rows in part:
            together.extend(rows)
        until = time.monotonic() + PATIENCE_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            error = await self._execute(together)
            for _, rows in part:
                rows.stale = together.stale & rows.claims.keys()
            if error is None or not may_pass(error) or answered(error) or time.monotonic() >= until:
                return error
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - so that workers do not retry at the same time
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _execute(self, rows: Rows) -> Exception | None:
        self._moved_at = time.monotonic()
        try:
            await _execute_within(self._pool, rows, self._worker_id)
        except Exception as error:  # noqa: BLE001 - the caller that waits for a unit decides what it means.
            return error
        return None

    def _try_alone(self, each: Sized) -> None:
        self._alone.append((each, time.monotonic() + PATIENCE_SECONDS))
        if self._retrying is None:
            self._retrying = asyncio.get_running_loop().create_task(self._retry())
            self._retrying.add_done_callback(self._stopped_retrying)

    def _stopped_retrying(self, _: asyncio.Task[None]) -> None:
        self._retrying = None
        if self._alone:
            self._retrying = asyncio.get_running_loop().create_task(self._retry())
            self._retrying.add_done_callback(self._stopped_retrying)

    async def _retry(self) -> None:
        """Retry the refused units one by one, in turn, until each is written or given up."""
        while self._alone:
            await asyncio.sleep(_ALONE_PAUSE_SECONDS)
            seen: set[str | None] = set()
            for each in list(self._alone):
                (unit, rows), until = each
                # Not before earlier rows of the same run.
                if unit.run_id is not None and unit.run_id in seen:
                    continue
                error = await self._execute(rows)
                if error is not None and may_pass(error) and time.monotonic() < until:
                    seen.add(unit.run_id)
                    continue
                self._alone.remove(each)
                tell(unit, error, rows)


async def _execute_within(pool: Connections, rows: Rows, worker_id: UUID | None) -> None:
    """Write the rows in one transaction with short lock and statement timeouts, in one round trip."""
    seconds = STATEMENT_SECONDS + rows.size() * _SECONDS_A_BYTE
    limits = (
        f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000:.0f}",
        f"SET LOCAL statement_timeout = {seconds * 1000:.0f}",
    )
    # Sent together and answered together.
    async with pool.connection_to_retry_on() as connection, connection.pipeline(), connection.transaction():
        for limit in limits:
            await connection.execute(cast("Any", limit))
        answer = await connection.execute(*statement_of(rows, worker_id))
        if worker_id is not None and rows.claims:
            rows.stale = rows.claims.keys() - {row["run_id"] for row in await answer.fetchall()}
