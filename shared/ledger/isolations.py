"""Workflows whose runs are executed in dedicated runners, as recorded in the ledger."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import in_transaction, transaction
from orcheo_dispatch.shared.ledger.operators.operations import Author, Done, record_operation
from orcheo_dispatch.shared.ledger.statements.isolate import (
    CLEAR_ISOLATION,
    ISOLATE,
    ISOLATED,
    PRUNE_ISOLATION,
    RECORD_HARM,
)

MOST = 10_000
"""Maximum number of rows that are read; those that expire soonest are left out."""
_READ_MILLISECONDS = 2_000
_LOCK_SECONDS = 1.0
_ALL_VERSIONS = ""
_NO_REASON = "by an operator"


@dataclass(frozen=True, slots=True)
class Isolated:
    """A workflow, or one version of it, whose runs are executed in dedicated runners."""

    workflow_id: str
    workflow_version_id: str | None
    """None means all versions."""
    reason: str
    by: str
    """`worker`, or the login name of an operator."""
    since: datetime
    until: datetime | None
    """None means until an operator clears it."""
    last_seen_at: datetime | None
    """When a worker last saw a run do harm; None means never."""
    times: int
    """How often workers have seen a run do harm."""

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its keys are stable."""
        return asdict(self)


class Isolations:
    """Reads and writes isolations. Each method is one short transaction and raises `DatabaseError`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def held(self) -> list[Isolated]:
        """Return at most `MOST` isolations that are in force, those that expire last first."""
        with transaction(
            self._engine, timeout_milliseconds=_READ_MILLISECONDS, lock_timeout=_LOCK_SECONDS, read_only=True
        ) as connection:
            return [Isolated(**row) for row in connection.execute(ISOLATED, {"limit": MOST}).mappings()]

    def record_harm(self, workflow_id: str, version_id: str, reason: str, *, times: int) -> None:
        """Isolate a version for one day from now because its runs did harm `times` times; never shorten an isolation.

        Raises `RowLockedError` if another session keeps the row locked for a second.
        """
        self._write(RECORD_HARM, workflow_id=workflow_id, version_id=version_id, reason=reason, times=times)

    def prune(self) -> None:
        """Delete isolations that expired a month ago."""
        self._write(PRUNE_ISOLATION)

    def isolate(self, workflow_id: str, version_id: str | None, author: Author, *, seconds: float | None) -> Isolated:
        """Isolate a workflow or a version for an operator, for `seconds` or until it is cleared; record who did it."""

        def change(connection: Connection) -> Isolated:
            decision = {"workflow_id": workflow_id, "version_id": version_id or _ALL_VERSIONS, "seconds": seconds}
            said = {"reason": author.why or _NO_REASON, "by": author.by}
            row = connection.execute(ISOLATE, {**decision, **said}).mappings().one()
            details = {"version_id": version_id, "seconds": seconds}
            given = {name: value for name, value in details.items() if value is not None}
            record_operation(connection, author, Done("isolate", changed=1, workflow_id=workflow_id, details=given))
            return Isolated(**row)

        return in_transaction(self._engine, change, lock_timeout=_LOCK_SECONDS)

    def clear(self, workflow_id: str, version_id: str | None, author: Author) -> list[Isolated]:
        """Clear the isolation of a version, or of a workflow and all its versions; return what was cleared."""

        def change(connection: Connection) -> list[Isolated]:
            parameters = {"workflow_id": workflow_id, "version_id": version_id}
            rows = connection.execute(CLEAR_ISOLATION, parameters).mappings().all()
            given = {} if version_id is None else {"version_id": version_id}
            done = Done("isolate clear", changed=len(rows), workflow_id=workflow_id, details=given)
            record_operation(connection, author, done)
            return [Isolated(**row) for row in rows]

        cleared = in_transaction(self._engine, change, lock_timeout=_LOCK_SECONDS)
        return sorted(cleared, key=lambda each: each.workflow_version_id or _ALL_VERSIONS)

    def _write(self, statement: Any, **parameters: Any) -> list[Any]:
        return in_transaction(
            self._engine,
            lambda connection: (
                list(result.mappings()) if (result := connection.execute(statement, parameters)).returns_rows else []
            ),
            lock_timeout=_LOCK_SECONDS,
        )
