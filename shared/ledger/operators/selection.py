"""Choose runs by a filter: by workflow, workspace, status, class of the error and age."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.statements.repair import CHOOSE_RUNS, COUNT_RUNS

PAGE = 500
"""Number of runs that one statement chooses at most."""
_READ_MILLISECONDS = 10_000


class Action(StrEnum):
    """What to do to a run."""

    CANCEL = "cancel"
    """End it as cancelled; a worker that executes it stops within two heartbeats."""
    FAIL = "fail"
    """End it as failed, where no worker is alive that could."""
    REQUEUE = "requeue"
    """Make it pending again, with all its attempts; its fence keeps earlier holders out."""
    ANSWER = "answer"
    """Give it the answer that it waits for; it becomes pending, and continues."""


_BY_DEFAULT = {
    Action.CANCEL: ("pending", "running"),
    Action.FAIL: ("pending", "running"),
    Action.REQUEUE: ("failed",),
    Action.ANSWER: ("running",),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs to change. What is empty or None filters nothing."""

    workflow: str | None = None
    workspace: str | None = None
    status: tuple[str, ...] = ()
    """Any of these."""
    reason: str | None = None
    """The class of the error, or the reason why the run was given up: `reason` in the ledger."""
    older_than: float | None = None
    """Created more than this many seconds ago."""
    since: datetime | float | None = None
    """Created since this time, or less than this many seconds ago."""
    dead: bool = False
    """Only failed runs that are not tried again."""
    waiting: bool = False
    """Only runs that wait for an answer."""

    def of(self, action: Action) -> Selection:
        """Return the selection with the statuses that `action` changes, unless it names some.

        A requeue does not revive cancelled runs by default: somebody wanted them cancelled. Only runs that wait for an
        answer get one.
        """
        chosen = replace(self, waiting=True) if action is Action.ANSWER else self
        return chosen if self.status or self.dead else replace(chosen, status=_BY_DEFAULT[action])

    def as_details(self) -> dict[str, Any]:
        """Return the filter as the log of operations has it."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if name == "status" else value for name, value in given.items() if value}

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of `CHOOSE_RUNS` and `COUNT_RUNS`."""
        at = self.since if isinstance(self.since, datetime) else None
        return {
            "workflow": self.workflow,
            "workspace": self.workspace,
            "statuses": list(self.status),
            "error_class": self.reason,
            "older_than": self.older_than,
            "since": at,
            "since_ago": None if isinstance(self.since, datetime) else self.since,
            "dead": self.dead,
            "waiting": self.waiting,
        }


def count(engine: Engine, selection: Selection) -> int:
    """Return the number of runs. Raises `DatabaseError`."""
    with transaction(engine, timeout_milliseconds=_READ_MILLISECONDS, read_only=True) as connection:
        return int(connection.scalar(COUNT_RUNS, selection.parameters()) or 0)


def choose(engine: Engine, selection: Selection, limit: int = PAGE, after: str = "") -> list[str]:
    """Return the IDs of runs after `after`, at most `limit`, in order of their ID. Raises `DatabaseError`."""
    with transaction(engine, timeout_milliseconds=_READ_MILLISECONDS, read_only=True, many_rows=True) as connection:
        rows = connection.execute(CHOOSE_RUNS, {**selection.parameters(), "limit": limit, "after": after})
        return [row.run_id for row in rows]


def pages(engine: Engine, selection: Selection, limit: int | None) -> Iterator[str]:
    """Yield the IDs of a selection, at most `limit`, page by page: one is read after the runs before it were changed.

    Raises `DatabaseError`.
    """
    after, left = "", limit
    while left is None or left > 0:
        page = choose(engine, selection, PAGE if left is None else min(PAGE, left), after)
        if not page:
            return
        yield from page
        after, left = page[-1], None if left is None else left - len(page)
