"""The tables of the two experiments, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.peers.experiments import LIMIT_SECONDS, Killed, Paused

_console = Console(width=140, highlight=False)


@dataclass(slots=True)
class Row:
    """What was measured of one system."""

    name: str
    versions: str
    killed: list[Killed] = field(default_factory=list)
    paused: list[Paused] = field(default_factory=list)
    failed: str = ""
    """Why it could not be measured."""


def print_rows(rows: Sequence[Row]) -> None:
    """Print a table for each experiment, a line for each time that it was carried out."""
    killed = Table("system", "status", "seconds to the end", "executions of steps 1 to 5", title_justify="left")
    killed.title = f"killed in step 3, started again; limit {LIMIT_SECONDS:g} s"
    paused = Table(
        *("system", "in step", "taken over", "status", "executions of steps 1 to 5"),
        *("steps begun by the paused process", "rows of checkpoints it wrote", "changes of the run it wrote"),
        title_justify="left",
    )
    paused.title = "paused until a second process executes the run"
    for row in rows:
        for kill in row.killed:
            took = f"{kill.seconds:.0f}" if kill.ended else "not ended"
            killed.add_row(row.name, kill.status, took, _counts(kill.executions))
        for pause in row.paused:
            stale = (pause.stale_steps, pause.stale_checkpoints, pause.stale_changes)
            paused.add_row(
                row.name,
                str(pause.step),
                "yes" if pause.taken_over else "no",
                pause.status,
                _counts(pause.executions),
                *map(str, stale),
            )
    for table in (killed, paused):
        if table.row_count:
            _console.print(table)
    for row in rows:
        _console.print(f"{row.name}: {row.failed or row.versions}", markup=False)


def _counts(executions: Sequence[int]) -> str:
    return " ".join(map(str, executions))
