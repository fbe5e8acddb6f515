"""What a session of trials found, as one table: a line for each case, a column for each isolation and policy."""

from __future__ import annotations

from collections.abc import Sequence

from tests.neighbours.trial import Found

_HEAD = (
    "Good runs beside a bad neighbour that failed, did not end, lost an attempt, began again, were more than 3 s late, "
    "or leaked a slot."
)
_AGAIN = "adaptive: at the first time / at the second time of the same workflow."


def table(found: Sequence[Found]) -> str:
    """Return the table; `!` marks harm that must not be, `~` harm that is inherent."""
    columns = list(dict.fromkeys(each.column for each in found))
    cells = {(each.case, each.column): _cell(each) for each in found}
    cases = list(dict.fromkeys(each.case for each in found))
    lines = [["case", *columns], *([case, *(cells.get((case, each), "") for each in columns)] for case in cases)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
    rows = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows.insert(1, "-|-".join("-" * width for width in widths))
    notes = {f"~ {each.case}: {each.inherent}": None for each in found if each.is_inherent}
    return "\n".join([_HEAD, _AGAIN, "", *rows, "", *notes])


def _cell(found: Found) -> str:
    mark = "! " if not found.is_wanted else "~ " if found.is_inherent else ""
    again = "" if found.again is None else f" / {found.again}"
    return f"{mark}{found.first}{again}"
