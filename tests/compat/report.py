"""The table of trials, for the terminal and for docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.compat.sets import ROOT, SETS, SHOWN
from tests.compat.trial import Trial
from tests.support import pages

PAGE = ROOT / "docs" / "compatibility.md"
_NAME = "compat"
HEAD = ("set", *(f"`{name}`" for name in SHOWN), "checkpoints", "tests", "without")


def table(trials: Sequence[Trial]) -> str:
    """Return a table with a row for each trial."""
    return pages.table(HEAD, map(_row, trials))


def write(trials: Sequence[Trial]) -> None:
    """Put the rows of these trials into the table of the page; those of other sets stay.

    Raises `ValueError` where the page has no markers.
    """
    rows = {row[0]: row for row in [*_rows(_written()), *(_row(trial) for trial in trials)]}
    ordered = [rows[each.name] for each in SETS if each.name in rows]
    pages.write(PAGE, _NAME, pages.table(HEAD, ordered))


def written_rows() -> list[dict[str, str]]:
    """Return the rows of the page by the names of the columns, without the backticks of these."""
    return [dict(zip((name.strip("`") for name in HEAD), row, strict=True)) for row in _rows(_written())]


def _written() -> str:
    return pages.parts(PAGE.read_text(), _NAME)[1]


def _rows(written: str) -> list[list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.split("\n") if line]
    return [row for row in cells if len(row) == len(HEAD) and row[0] in {each.name for each in SETS}]


def _row(trial: Trial) -> list[str]:
    versions = [trial.environment.versions[name] for name in SHOWN]
    checkpoints = "LangGraph's own saver" if trial.unfit else "group commit"
    without = "; ".join(feature.name for feature in trial.environment.lacks) or "-"
    return [trial.environment.set.name, *versions, "-" if trial.wrong else checkpoints, _tests(trial), without]


def _tests(trial: Trial) -> str:
    if trial.wrong is not None:
        return f"refused: {_one_cell(trial.wrong)}"
    failed = f", {len(trial.failed)} failed: {', '.join(trial.failed)}" if trial.failed else ""
    skipped = f", {trial.skipped} skipped" if trial.skipped else ""
    return f"{trial.passed} passed{failed}{skipped}"


def _one_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
