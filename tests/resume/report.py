"""The table at the end of `make resume`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pytest

from tests.resume.shapes import Case


@dataclass(slots=True)
class Row:
    """The figures of one case."""

    case: Case
    finished_repeated: int = 0
    in_flight_repeated: int = 0
    state_equal: bool = False
    trace_complete: bool = False


ROWS = pytest.StashKey[list[Row]]()
_LINE = "{:<14}{:<10}{:>6}{:>25}{:>23}{:>13}{:>16}"


def lines_of(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table, one for each shape and what was killed."""
    yield _LINE.format(
        "shape", "killed", "cases", "finished steps repeated", "in flight repeated", "state equal", "trace complete"
    )
    for (shape, killed), grouped in groupby(rows, lambda row: (row.case.shape, row.case.killed)):
        cases = list(grouped)
        yield _LINE.format(
            shape,
            killed,
            len(cases),
            sum(row.finished_repeated for row in cases),
            sum(row.in_flight_repeated for row in cases),
            f"{sum(row.state_equal for row in cases)} of {len(cases)}",
            f"{sum(row.trace_complete for row in cases)} of {len(cases)}",
        )
