"""The table of trials, for the terminal and for docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.compat.sets import ROOT, SHOWN
from tests.compat.trial import Trial

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- compat -->", "<!-- /compat -->"


def table(trials: Sequence[Trial]) -> str:
    """Return a table with a row for each trial."""
    head = ["set", *(f"`{name}`" for name in SHOWN), "checkpoints", "tests"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_row(trial))} |" for trial in trials]
    return "\n".join(lines)


def write(trials: Sequence[Trial]) -> None:
    """Put the table into the page, between its markers. Raises `ValueError` where it has none."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no markers {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(trials)}\n\n{END}{after}")


def _row(trial: Trial) -> list[str]:
    versions = [trial.environment.versions[name] for name in SHOWN]
    checkpoints = "LangGraph's own saver" if trial.unfit else "group commit"
    return [trial.environment.set.name, *versions, "-" if trial.wrong else checkpoints, _tests(trial)]


def _tests(trial: Trial) -> str:
    if trial.wrong is not None:
        return f"refused: {trial.wrong}"
    failed = f", {len(trial.failed)} failed: {', '.join(trial.failed)}" if trial.failed else ""
    skipped = f", {trial.skipped} skipped" if trial.skipped else ""
    left_out = f", {len(trial.environment.set.left_out)} left out" if trial.environment.set.left_out else ""
    return f"{trial.passed} passed{failed}{skipped}{left_out}"
