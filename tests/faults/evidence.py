"""All that a trial leaves behind, read once, after everything has stopped."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.faults import history
from tests.faults.acts import BEGUN, DID, ENDED
from tests.faults.history import History
from tests.faults.injector import Injected
from tests.faults.plan import Plan
from tests.faults.supervisor import Exit
from tests.histories.operations import Operation
from tests.histories.reading import final, operations_of, read_calls
from tests.support.orcheo.stored_steps import Execution, Stored

SIDE_EFFECTS = frozenset({BEGUN, DID, ENDED})


@dataclass(frozen=True, slots=True)
class Note:
    """A line of the file that each run appends to. Fence 0 where the run cannot know it."""

    run_id: str
    fence: int
    event: str
    at: float
    pid: int
    worker: int
    """The process group of its parent: the worker's, if it is a runner."""


@dataclass(frozen=True)
class Evidence:
    """What the checker judges."""

    plan: Plan
    lost_runs: str
    """What the policy is: `fail`, `requeue` or `resume`."""
    fenced: bool
    """Whether there is a ledger; the stock worker has none."""
    runs: Mapping[str, dict[str, Any]]
    ledger: Mapping[str, dict[str, Any]]
    history: History
    notes: list[Note]
    injected: list[Injected]
    exits: list[Exit]
    cancelled: Mapping[str, float]
    """When the API cancelled a run."""
    slots_leaked: int
    logs: Mapping[str, str]
    secrets: tuple[str, ...]
    """Words that no log may hold."""
    executions: list[Execution] = field(default_factory=list)
    """Of steps, under `resume`."""
    stored: list[Stored] = field(default_factory=list)
    """When these steps were stored."""
    subtracted: Mapping[str, int] = field(default_factory=dict)
    """Attempts that a migration back has subtracted from a run's, because revision 0004 has no column for refunds."""
    operations: Mapping[str, list[Operation]] = field(default_factory=dict)
    """What was asked of the database, and answered, by run."""

    @cached_property
    def notes_of(self) -> dict[str, list[Note]]:
        """The notes by run."""
        found: dict[str, list[Note]] = defaultdict(list)
        for note in self.notes:
            found[note.run_id].append(note)
        return found


def read_tables(dsn: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], History]:
    """Return the runs, the ledger and the history."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        with connection.cursor(row_factory=dict_row) as cursor:
            runs = cursor.execute("SELECT * FROM workflow_runs").fetchall()
            ledger = cursor.execute("SELECT * FROM orcheo_dispatch.dispatch").fetchall()
        return {row["id"]: row for row in runs}, {row["run_id"]: row for row in ledger}, history.read(connection)


def read_operations(
    calls: Path, runs: Mapping[str, dict[str, Any]], ledger: Mapping[str, dict[str, Any]]
) -> dict[str, list[Operation]]:
    """Return the recorded operations on each run, with its last state as the last one."""
    now = time.monotonic()
    return operations_of(read_calls(calls), {id_: final(run, ledger.get(id_), now) for id_, run in runs.items()})


def read_notes(file: Path) -> list[Note]:
    """Return what the runs have noted, in order."""
    lines = (line.split() for line in file.read_text().splitlines()) if file.exists() else iter(())
    return [
        Note(run_id, int(fence), event, float(at), int(pid), int(worker))
        for run_id, fence, event, at, pid, worker in lines
    ]


def read_logs(logs: Mapping[str, Path]) -> dict[str, str]:
    """Return the logs by process."""
    return {name: log.read_text(errors="replace") for name, log in logs.items() if log.exists()}


def actions(run: Mapping[str, Any]) -> list[str]:
    """Return the actions in a run's audit log."""
    return [str(record.get("action")) for record in _records(run)]


def _records(run: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = run["payload"].get("audit_log") or []
    return found
