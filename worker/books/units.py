"""Units of rows that are written together or not at all, and how many of them are divided into statements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orcheo_dispatch.worker.books.rows import Rows

_MAX_BATCH_BYTES = 4_000_000


class Unit:
    """Rows of one run that are written together, or not at all.

    It may grow until it is `sealed`, which happens when its statement is made. Units with the same `run_id`, if they
    have one, are written in the order in which they were added.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.sealed = False
        self.written: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done when the unit is written or dropped (result None), or given up (result: the error)."""

    def rows(self) -> Rows:
        """Return the rows. Must not fail."""
        raise NotImplementedError


class StaleFenceError(Exception):
    """This worker does not hold the run: nothing was written."""


Sized = tuple[Unit, Rows]


def tell(unit: Unit, outcome: Exception | None, rows: Rows | None = None) -> None:
    """Set the result of a unit that has none: `outcome`, or `StaleFenceError` if `rows` were refused for that."""
    if outcome is None and rows is not None and rows.stale:
        outcome = StaleFenceError()
    if not unit.written.done():
        unit.written.set_result(outcome)


def without_rows(part: Sequence[Sized]) -> Sequence[Sized]:
    """Return a part whose statement uses the same tables but has no rows."""
    rows = Rows()
    for _, each in part:
        rows.texts.update({table: [] for table in each.texts})
        rows.contents.update({table: [] for table in each.contents})
    return [(part[0][0], rows)]


def by_tables(part: Sequence[Sized]) -> list[list[Sized]]:
    """Divide a part into parts whose units have rows of the same tables."""
    parts: dict[frozenset[str], list[Sized]] = {}
    for each in part:
        parts.setdefault(frozenset(each[1].texts), []).append(each)
    return list(parts.values())


def batches(units: Sequence[Sized]) -> list[list[Sized]]:
    """Return the units divided into statements of limited size.

    A statement checks one fence per run: units of two claims of a run are never in the same one.
    """
    found: list[list[Sized]] = []
    fences: dict[str, int] = {}
    room = 0
    for each in units:
        _, rows = each
        size = rows.size()
        if not found or size > room or any(fences.get(run, fence) != fence for run, fence in rows.claims.items()):
            found.append([])
            fences = {}
            room = _MAX_BATCH_BYTES
        found[-1].append(each)
        fences |= rows.claims
        room -= size
    return found
