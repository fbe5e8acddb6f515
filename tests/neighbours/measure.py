"""A wave of good runs beside a bad neighbour, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import psycopg

from tests.support.database.databases import Database
from tests.support.database.runs import WORKSPACE_ID, everything, insert_runs, insert_workflow

DELAYED_SECONDS = 3.0
_OTHER_WORKSPACE = str(uuid4())
_ENDED = ("succeeded", "failed", "cancelled")

# What a run took beyond what it is to take, by the clock of the database; None where it has not ended.
_LATE = """
SELECT r.status, r.payload ->> 'error' AS error, d.slot IS NOT DISTINCT FROM 'due' AS slot_due,
       COALESCE(d.attempts, 0) > 0 AS begun, GREATEST(COALESCE(d.attempts - d.refunded, 0) - 1, 0) AS attempts,
       GREATEST(COALESCE(d.attempts, 0) - 1, 0) AS repeats,
       EXTRACT(EPOCH FROM d.settled_at - w.at)::float8 - w.takes AS late
  FROM unnest(%s::text[], %s::timestamptz[], %s::float8[]) AS w(id, at, takes)
  JOIN workflow_runs AS r ON r.id = w.id
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
"""


@dataclass(frozen=True, slots=True)
class Harm:
    """What good runs suffered; all zero is what is wanted."""

    failed: int = 0
    unfinished: int = 0
    attempts: int = 0
    """Begins beyond the first that count against the run."""
    repeated: int = 0
    """Runs that began more than once, whether or not that counts."""
    delayed: int = 0
    """By more than `DELAYED_SECONDS` than beside nobody."""
    leaked: int = 0
    """Run slots that were not given back."""
    worst: float = 0.0
    """Seconds that the most delayed one was late."""
    why: tuple[str, ...] = field(default=(), compare=False)

    @property
    def none(self) -> bool:
        """Whether nobody was harmed."""
        return not any((self.failed, self.unfinished, self.attempts, self.repeated, self.delayed, self.leaked))

    def __str__(self) -> str:
        if self.none:
            return "0"
        named = {
            "failed": self.failed,
            "unfinished": self.unfinished,
            "attempts lost": self.attempts,
            "begun again": self.repeated,
            "delayed": self.delayed,
            "leaked": self.leaked,
        }
        said = ", ".join(f"{count} {name}" for name, count in named.items() if count)
        return f"{said} (worst {self.worst:.1f} s)" if self.delayed else said


class Wave(Protocol):
    """Good runs of one system, and what has become of them."""

    def add(self, count: int, *, seconds: float, workspace_id: str, do: str = "wait") -> None:
        """Insert runs that take so long."""

    def rows(self) -> Sequence[dict[str, Any]]:
        """Return each run's status, error, begun, attempts, repeats, slot_due, and late: None before the end."""


@dataclass(slots=True)
class OurWave:
    """Good runs of this project's worker."""

    database: Database
    ids: list[str] = field(default_factory=list)
    at: list[Any] = field(default_factory=list)
    takes: list[float] = field(default_factory=list)

    def add(self, count: int, *, seconds: float, workspace_id: str, do: str = "wait") -> None:
        """Insert runs that take so long, of a workflow of their own."""
        workflow_id = str(uuid4())
        with psycopg.connect(self.database.dsn, autocommit=True) as connection:
            insert_workflow(connection, workflow_id, owner=workspace_id)
            (at,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        self.ids += insert_runs(
            self.database,
            count,
            workspace_id=workspace_id,
            workflow_id=workflow_id,
            version_id=str(uuid4()),
            inputs={"do": do, "seconds": seconds},
        )
        self.at += [at] * count
        self.takes += [seconds] * count

    def rows(self) -> Sequence[dict[str, Any]]:
        """Return what has become of them so far."""
        return everything(self.database, _LATE, self.ids, self.at, self.takes)


def measure(
    good: Wave,
    *,
    bad: Callable[[], AbstractContextManager[Any]],
    waiting: int = 20,
    seconds: float = 3.0,
    patience: float = 40.0,
    usual: float = 0.0,
) -> Harm:
    """Have good runs wait in two workspaces, and short ones come, while `bad` is going on; return the harm.

    `usual` is how late the latest is beside nobody.
    """
    good.add(waiting // 2, seconds=seconds, workspace_id=WORKSPACE_ID)
    good.add(waiting - waiting // 2, seconds=seconds, workspace_id=_OTHER_WORKSPACE)
    _until(lambda: all(row["begun"] for row in good.rows()), 10)
    with bad():
        for _ in range(8):
            good.add(1, seconds=0.0, workspace_id=WORKSPACE_ID)
            good.add(1, seconds=0.1, workspace_id=WORKSPACE_ID, do="use a thread")
            time.sleep(0.3)
        _until(lambda: all(row["status"] in _ENDED for row in good.rows()), patience)
    # Slots are given back just after the end.
    _until(lambda: not any(row["slot_due"] for row in good.rows()), 5)
    rows = good.rows()
    late = [row["late"] - usual for row in rows if row["late"] is not None]
    return Harm(
        failed=sum(row["status"] in {"failed", "cancelled"} for row in rows),
        unfinished=sum(row["status"] not in _ENDED for row in rows),
        attempts=sum(row["attempts"] for row in rows),
        repeated=sum(row["repeats"] > 0 for row in rows),
        delayed=sum(each > DELAYED_SECONDS for each in late),
        leaked=sum(row["slot_due"] for row in rows),
        worst=max(late, default=0.0),
        why=tuple(sorted({str(row["error"]) for row in rows if row["status"] == "failed"})),
    )


def _until(look: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, for this many seconds at most; what is not so then is counted."""
    deadline = time.monotonic() + seconds
    while not look() and time.monotonic() < deadline:
        time.sleep(0.05)
