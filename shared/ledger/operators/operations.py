"""The log of operations: who did what to which runs and policies, through which interface."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.statements.policy import AUTHOR, ENTRIES, OPERATIONS, RECORD_OPERATION
from orcheo_dispatch.shared.text.redaction import redact

_LONGEST = 500
_MERGED_GAP = timedelta(minutes=5)
_LEAST_READ = 1_000
_IN_BATCHES = frozenset({"requeue", "cancel", "fail", "answer"})
_SAME = ("by", "interface", "action", "details", "why")
_READ_MILLISECONDS = 2_000


class Interface(StrEnum):
    """Through what an operator acts."""

    COMMAND = "command"
    PAGE = "page"
    SQL = "sql"


@dataclass(frozen=True, slots=True)
class Author:
    """Who acts, through what, and why; secrets in the text are redacted."""

    by: str
    interface: Interface
    why: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", clean(self.by) or "unknown")
        object.__setattr__(self, "why", clean(self.why) if self.why else None)

    def sign(self, connection: Connection) -> None:
        """Have the changes of policies in this transaction recorded under this name."""
        connection.execute(AUTHOR, {"by": self.by, "interface": self.interface.value, "why": self.why})


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the log."""

    id: int
    at: datetime
    by: str
    interface: str
    action: str
    workspace_id: str | None
    workflow_id: str | None
    run_ids: list[str]
    details: dict[str, Any]
    changed: int
    refused: int
    why: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its keys are stable."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the log is shown as: one operation, or consecutive equal ones, such as the batches of one command."""

    id: int
    """Number of its first operation."""
    at: datetime
    """Time of its last one."""
    by: str
    interface: str
    action: str
    workspace_id: str | None
    workflow_id: str | None
    runs: int
    run_id: str | None
    """The first of its runs."""
    details: dict[str, Any]
    changed: int
    refused: int
    why: str | None


@dataclass(frozen=True, slots=True)
class Done:
    """What is entered into the log about an operation; `details` never holds an input, an output or an answer."""

    action: str
    run_ids: Sequence[str] = ()
    changed: int = 0
    refused: int = 0
    workspace_id: str | None = None
    workflow_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def record_operation(connection: Connection, author: Author, done: Done) -> int:
    """Append an operation in the transaction of its changes, and return its number."""
    row = connection.execute(
        RECORD_OPERATION,
        {
            "by": author.by,
            "interface": author.interface.value,
            "action": done.action,
            "workspace_id": done.workspace_id,
            "workflow_id": done.workflow_id,
            "run_ids": list(done.run_ids),
            "details": json.dumps(dict(done.details), default=str),
            "changed": done.changed,
            "refused": done.refused,
            "why": author.why,
        },
    ).one()
    return int(row.id)


def list_operations(engine: Engine, *, limit: int, before: int | None = None) -> list[Operation]:
    """Return the newest operations, newest first; with `before`, those before that number. Raises `DatabaseError`."""
    with transaction(engine, timeout_milliseconds=_READ_MILLISECONDS, read_only=True) as connection:
        rows = connection.execute(OPERATIONS, {"limit": limit, "before": before}).mappings()
        return [Operation(**row) for row in rows]


def read_entries(connection: Connection, *, limit: int) -> list[Entry]:
    """Return the newest entries, newest first, of at most the newest thousand operations, or `limit` if it is more."""
    rows = connection.execute(ENTRIES, {"limit": max(limit, _LEAST_READ)}).mappings()
    return merge_entries(Entry(**row) for row in rows)[:limit]


def merge_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Merge the batches of each bulk operation: consecutive equal entries, each within five minutes of the next one.

    Both lists are newest first.
    """
    groups: list[list[Entry]] = []
    for entry in entries:
        if groups and _is_next_batch(entry, groups[-1][-1]):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return [_merged(group) for group in groups]


def _is_next_batch(older: Entry, newer: Entry) -> bool:
    equal = all(getattr(older, name) == getattr(newer, name) for name in _SAME)
    return equal and older.action in _IN_BATCHES and newer.at - older.at <= _MERGED_GAP


def _merged(group: Sequence[Entry]) -> Entry:
    first, last = group[-1], group[0]
    return replace(
        first,
        at=last.at,
        workspace_id=_common(each.workspace_id for each in group),
        workflow_id=_common(each.workflow_id for each in group),
        runs=sum(each.runs for each in group),
        run_id=next((each.run_id for each in reversed(group) if each.run_id), None),
        changed=sum(each.changed for each in group),
        refused=sum(each.refused for each in group),
    )


def _common(ids: Iterable[str | None]) -> str | None:
    found = set(ids)
    return found.pop() if len(found) == 1 else None


def clean(given: str) -> str:
    """Return a text that can be stored and shown: printable, redacted, and cut to 500 characters."""
    text = "".join(character if character.isprintable() else " " for character in redact(given))
    return text.encode("utf-8", "replace").decode()[:_LONGEST].strip()
