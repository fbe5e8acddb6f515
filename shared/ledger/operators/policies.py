"""Policies: what operators decided for all runs, for a workspace or for a workflow.

Every process reads them in the statements that claim, begin and reap, so that a change is in force at the next poll
and the next begin, without a restart. For pauses, queues, timeouts and rules, the most specific scope that says
something decides, field by field: the workflow, then the workspace, then all; then the settings of the process. Limits
do not replace each other: each holds for the runs of its scope together, so that no workflow can exceed the limit of
its workspace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine

from orcheo_dispatch.shared.database.connections import in_transaction, transaction
from orcheo_dispatch.shared.ledger.operators.operations import Author
from orcheo_dispatch.shared.ledger.statements.policy import (
    CLEAR_POLICY,
    POLICIES,
    POLICIES_LOCK,
    PRUNE_RATES,
    SET_POLICY,
)

MOST = 10_000
"""Maximum number of policies that are listed."""
_READ_MILLISECONDS = 2_000
_LOCK_SECONDS = 1.0
_OF_THE_ROW = ("workspace_id", "workflow_id", "why", "by", "at")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a policy is about: one workspace, one workflow, or all runs if both are empty."""

    workspace_id: str = ""
    workflow_id: str = ""

    def __str__(self) -> str:
        """Return `all runs`, `workspace W` or `workflow F`."""
        if self.workflow_id:
            return f"workflow {self.workflow_id}"
        return f"workspace {self.workspace_id}" if self.workspace_id else "all runs"


ALL = Scope()


@dataclass(frozen=True, slots=True)
class Policy:
    """One row. None means that the row says nothing about the field. Durations are seconds."""

    workspace_id: str
    workflow_id: str
    maintenance: bool | None
    paused: bool | None
    paused_until: datetime | None
    priority: int | None
    max_running: int | None
    rate_runs: int | None
    rate_seconds: int | None
    queue: str | None
    timeout_seconds: float | None
    lost_runs: str | None
    retries: str | None
    isolation: str | None
    why: str | None
    by: str
    at: datetime

    @property
    def scope(self) -> Scope:
        """What the row is about."""
        return Scope(self.workspace_id, self.workflow_id)

    def paused_at(self, now: datetime) -> bool | None:
        """Return whether the scope is paused at this time; None if the row says nothing, or no longer."""
        return None if self.paused_until is not None and self.paused_until <= now else self.paused

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; its keys are stable."""
        row = asdict(self)
        scope = "workflow" if self.workflow_id else "workspace" if self.workspace_id else "all"
        named = {"workspace_id": self.workspace_id or None, "workflow_id": self.workflow_id or None}
        return {"scope": scope, **row, **named}


FIELDS = tuple(each.name for each in fields(Policy) if each.name not in _OF_THE_ROW)
"""The fields that an operator sets."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One field of the policy of a workflow: its value, and the row that decides it."""

    field: str
    value: Any
    by: Policy | None
    """None: no row says anything about it, and the settings of the process decide."""


class Policies:
    """Reads and writes policies. Each method is one short transaction and raises `DatabaseError`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def listed(self) -> list[Policy]:
        """Return all policies, wider scopes first, at most `MOST`."""
        return self._read(workspace_id=None, workflow_id=None)

    def get(self, scope: Scope) -> Policy | None:
        """Return the row of this scope, if there is one."""
        return next((each for each in self._read(asdict(scope)) if each.scope == scope), None)

    def concerning(self, workspace_id: str, workflow_id: str) -> list[Policy]:
        """Return the rows that concern a workflow of a workspace, the most specific first."""
        return self._read(workspace_id=workspace_id, workflow_id=workflow_id)[::-1]

    def set(self, scope: Scope, changes: Mapping[str, Any], author: Author) -> Policy:
        """Set these fields of a scope, and leave the others; a None takes a field back. Record who did it.

        Setting `paused` sets `paused_until` too. Raises `RefusedError` for a value that the table does not take.
        """
        return in_transaction(
            self._engine,
            lambda connection: _set(connection, scope, _complete(changes), author),
            lock_timeout=_LOCK_SECONDS,
        )

    def put(self, scope: Scope, changes: Mapping[str, Any], author: Author) -> bool:
        """Set these fields as `set` does, and delete the policy if it says nothing then.

        Return whether anything was done: false if there is no policy and none is to be set.
        """
        complete = _complete(changes)

        def change(connection: Connection) -> bool:
            connection.execute(POLICIES_LOCK)
            # In this transaction: what another operator sets meanwhile must not be deleted.
            rows = connection.execute(POLICIES, {**asdict(scope), "limit": MOST}).mappings()
            row = next((each for each in map(_policy, rows) if each.scope == scope), None)
            before = {} if row is None else {name: getattr(row, name) for name in FIELDS}
            if any(value is not None for value in {**before, **complete}.values()):
                _set(connection, scope, complete, author)
                return True
            return _clear(connection, scope, author) is not None

        return in_transaction(self._engine, change, lock_timeout=_LOCK_SECONDS)

    def clear(self, scope: Scope, author: Author) -> Policy | None:
        """Delete the policy of a scope and return it, if there was one. Record who did it."""
        return in_transaction(
            self._engine, lambda connection: _clear(connection, scope, author), lock_timeout=_LOCK_SECONDS
        )

    def prune(self) -> None:
        """Delete what no longer counts against a rate."""
        in_transaction(self._engine, lambda connection: connection.execute(PRUNE_RATES), lock_timeout=_LOCK_SECONDS)

    def _read(self, scope: Mapping[str, str] | None = None, **given: str | None) -> list[Policy]:
        with transaction(
            self._engine, timeout_milliseconds=_READ_MILLISECONDS, lock_timeout=_LOCK_SECONDS, read_only=True
        ) as connection:
            rows = connection.execute(POLICIES, {**(scope or given), "limit": MOST}).mappings()
            return [Policy(**row) for row in rows]


def decided(concerning: list[Policy], now: datetime) -> list[Decided]:
    """Return each field of a workflow's policy with the row that decides it; `concerning` is the most specific first.

    `now` is the time of the database: a pause that has ended by then decides nothing.

    The fields of limits (`priority`, `max_running`, `rate_runs`, `rate_seconds`) are left out: each row's limits hold
    for its own scope. So is `maintenance`, which is above all others.
    """
    found = []
    for name in ("paused", "queue", "timeout_seconds", "lost_runs", "retries", "isolation"):
        values = ((each, each.paused_at(now) if name == "paused" else getattr(each, name)) for each in concerning)
        by, value = next(((each, value) for each, value in values if value is not None), (None, None))
        found.append(Decided(name, value, by))
    return found


def _complete(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields to set: a new pause without an end must not keep the end of the last one."""
    unknown = changes.keys() - set(FIELDS)
    assert not unknown, unknown
    return {"paused_until": None, **changes} if "paused" in changes else dict(changes)


def _set(connection: Connection, scope: Scope, fields: Mapping[str, Any], author: Author) -> Policy:
    author.sign(connection)
    connection.execute(POLICIES_LOCK)
    parameters = {**_of(scope), "fields": json.dumps(fields, default=_plain), "why": author.why}
    return _policy(connection.execute(SET_POLICY, parameters).mappings().one())


def _clear(connection: Connection, scope: Scope, author: Author) -> Policy | None:
    author.sign(connection)
    row = connection.execute(CLEAR_POLICY, _of(scope)).mappings().one_or_none()
    return None if row is None else _policy(row)


def _policy(row: Mapping[Any, Any]) -> Policy:
    return Policy(**row)


def _of(scope: Scope) -> dict[str, str]:
    return {"of_workspace": scope.workspace_id, "of_workflow": scope.workflow_id}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
