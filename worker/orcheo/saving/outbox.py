"""Collect the rows that one run writes to Orcheo's tables, and send them to the main process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.worker.books.group_commit import SOON_SECONDS
from orcheo_dispatch.worker.books.rows import Rows
from orcheo_dispatch.worker.books.units import Unit
from orcheo_dispatch.worker.executor.outside import Outside

MAX_WRITE_BYTES = 16_000_000
"""Maximum size of the rows written at once; larger units are written in parts, one after the other."""


class NotWrittenError(Exception):
    """Rows of a run were not written because Postgres rejected them or was unavailable for too long."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind
        """The class of the underlying error."""


class Outbox:
    """Sends the units of one run: immediately if a caller waits for one, otherwise after a short delay.

    A unit may grow until it is sealed, which happens when it is sent. Nothing is sent until what was sent before is
    written: in one statement, two units of a run would not see each other's rows.
    """

    def __init__(self, outside: Outside, run: Claim) -> None:
        self._outside = outside
        self._run = run
        self._queued: list[Unit] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        """Whether queued units are to be sent as soon as possible."""
        self._under_way = 0
        """Number of units that are sent and not written yet."""
        self._hastened = False
        """Whether a caller waits for units that are queued or being written."""

    def add(self, unit: Unit) -> None:
        """Queue the unit, to be sent after a short delay."""
        self._queued.append(unit)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self._send_soon)

    def drop(self, unit: Unit) -> None:
        """Remove the unit from the queue, unless it has been sent."""
        if not unit.sealed:
            self._queued.remove(unit)
            unit.sealed = True
            unit.written.set_result(None)

    def hasten(self) -> None:
        """Have all units that are queued or sent written as soon as possible."""
        self._due = True
        if self._under_way and not self._hastened:
            self._outside.hasten()
        self._hastened = True
        self._send()

    def resumed(self, tasks: int) -> None:
        """Note that the run continues with this many tasks."""
        self._outside.resumed(tasks)

    def close(self) -> None:
        """Send all queued units without the delay."""
        self._due = True
        self._send()

    def _send_soon(self) -> None:
        self._due = True
        self._send()

    def _send(self) -> None:
        if self._under_way or not self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        units, self._queued, self._timer, self._due = self._queued, [], None, False
        hasten, self._hastened = self._hastened, self._hastened and bool(units)
        self._under_way = len(units)
        for unit in units:
            unit.sealed = True
        for place, unit in enumerate(units, 1):
            # Only the last unit hastens, so that all of them are written together.
            self._send_part(unit, parts_of(unit.rows()), hasten=hasten and place == len(units))

    def _send_part(self, unit: Unit, parts: Iterator[Rows], *, hasten: bool) -> None:
        part = next(parts, None)
        if part is None:
            self._end(unit, None)
            return
        answer = self._outside.write(self._run, part, hasten=hasten)
        answer.add_done_callback(partial(self._answered, unit, parts, hasten))

    def _answered(self, unit: Unit, parts: Iterator[Rows], hasten: bool, answer: asyncio.Future[str | None]) -> None:
        error = asyncio.CancelledError.__name__ if answer.cancelled() else answer.result()
        if error is None:
            self._send_part(unit, parts, hasten=hasten or self._hastened)
        else:
            self._end(unit, NotWrittenError(error))

    def _end(self, unit: Unit, error: NotWrittenError | None) -> None:
        unit.written.set_result(error)
        self._under_way -= 1
        if not self._under_way:
            # A caller that waits for queued units has registered in the meantime, or is about to.
            self._hastened = self._hastened and self._due
            self._send()


def parts_of(rows: Rows) -> Iterator[Rows]:
    """Yield rows in parts of limited size; rows that a checkpoint needs come before the checkpoint.

    The writes of a task are in one part, however large: a task with a write in the tables counts as finished.
    """
    if rows.size() <= MAX_WRITE_BYTES:
        if rows.texts:
            yield rows
        return
    part, size, task = Rows(), 0, None
    for table in sorted(rows.texts, key="checkpoints".__eq__):
        contents = rows.contents.get(table)
        for place, text in enumerate(rows.texts[table]):
            content = contents[place] if contents is not None else None
            more = len(text) + len(content or b"")
            last, task = task, json.loads(text)["task_id"] if table == "writes" else None
            if size and size + more > MAX_WRITE_BYTES and (task is None or task != last):
                yield part
                part, size = Rows(), 0
            size += more
            if contents is None:
                part.add(table, text)
            else:
                part.add_bytes(table, text, content)
    yield part
