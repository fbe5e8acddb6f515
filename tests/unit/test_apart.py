"""Items that fail as a batch are written in parts: each gets one answer, and none pays for another."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from orcheo_dispatch.shared.database.apart import Part, write_apart
from orcheo_dispatch.shared.errors import DatabaseError


class _Table:
    """Refuses some items, or all; counts statements."""

    def __init__(self, refused: Collection[int] = (), *, missing: bool = False, unavailable_after: int = 10**9) -> None:
        self.statements = 0
        self.written: list[int] = []
        self._refused = set(refused)
        self._missing = missing
        self._unavailable_after = unavailable_after

    def write(self, items: Sequence[int]) -> int:
        self.statements += 1
        if self.statements > self._unavailable_after:
            raise DatabaseError("the connection broke")
        if self._missing or self._refused & set(items):
            # As a trigger may raise it: the SQLSTATE of an outage.
            raise DatabaseError("refused", sqlstate="08006", answered=True)
        self.written.extend(items)
        return len(items)


def _write(table: _Table, count: int) -> list[Part[int, int]]:
    parts = list(write_apart(range(count), table.write))
    assert sorted(item for part in parts for item in part.items) == list(range(count)), "each has one answer"
    return parts


def test_good_batch_takes_one_statement() -> None:
    table = _Table()
    assert [part.result for part in _write(table, 500)] == [500]
    assert table.statements == 1


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 64, 500])
@pytest.mark.parametrize("where", ["first", "last", "both"])
def test_bad_items_fail_alone_after_few_statements(count: int, where: str) -> None:
    bad = {"first": {0}, "last": {count - 1}, "both": {0, count - 1}}[where]
    table = _Table(bad)
    parts = _write(table, count)
    assert sorted(table.written) == [item for item in range(count) if item not in bad]
    assert {part.items[0] for part in parts if part.one} == bad
    assert table.statements <= 2 + len(bad) * 8 * 4


def test_batch_of_bad_items_is_not_quadratic() -> None:
    table = _Table(range(500))
    assert sum(part.one for part in _write(table, 500)) == 500
    assert table.statements < 1.2 * 500


def test_statement_that_is_refused_itself_is_not_divided() -> None:
    """A right or a table is missing, or a table is locked: nobody is blamed, and it costs two statements."""
    table = _Table(missing=True)
    (part,) = _write(table, 500)
    assert (part.one, part.result, part.error is not None) == (False, None, True)
    assert table.statements == 2


@pytest.mark.parametrize("after", [0, 2, 5])
def test_outage_leaves_the_rest_to_the_caller(after: int) -> None:
    table = _Table({3}, unavailable_after=after)
    *_, last = _write(table, 64)
    assert (last.one, last.error is not None and last.error.answered) == (False, False)
