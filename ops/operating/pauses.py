"""Pause and resume scopes, and switch maintenance on and off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from orcheo_dispatch.ops.operating.scopes import database_now, workspace_of
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.operators.operations import Author
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope, decided


@dataclass(frozen=True, slots=True)
class Switched:
    """What was switched, and what is in force now."""

    scope: str
    workspace_id: str | None
    workflow_id: str | None
    changed: bool
    """Whether anything was: false if it was so already."""
    paused: bool
    """Whether its runs are paused now, by its own policy or a wider one."""
    paused_by: str | None
    """The scope of the policy that pauses them."""
    paused_until: datetime | None
    maintenance: bool

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def pause(engine: Engine, scope: Scope, author: Author, until: datetime | None) -> Switched:
    """Pause a scope, until a time or until it is unpaused. Raises `DatabaseError`."""
    Policies(engine).set(scope, {"paused": True, "paused_until": until}, author)
    return _now(engine, scope, changed=True)


def unpause(engine: Engine, scope: Scope, author: Author) -> Switched:
    """Take back the pause of a scope; a wider scope may still pause it. Raises `DatabaseError`."""
    row = Policies(engine).get(scope)
    if row is None or not row.paused:
        return _now(engine, scope, changed=False)
    Policies(engine).put(scope, {"paused": None}, author)
    return _now(engine, scope, changed=True)


def maintain(engine: Engine, author: Author, *, on: bool) -> Switched:
    """Switch maintenance on or off. Raises `DatabaseError`."""
    row = Policies(engine).get(ALL)
    if on:
        Policies(engine).set(ALL, {"maintenance": True}, author)
    elif row is not None and row.maintenance:
        Policies(engine).put(ALL, {"maintenance": None}, author)
    return _now(engine, ALL, changed=on != bool(row is not None and row.maintenance))


def _now(engine: Engine, scope: Scope, *, changed: bool) -> Switched:
    workspace_id = scope.workspace_id
    if scope.workflow_id:
        with transaction(engine) as connection:
            workspace_id = workspace_of(connection, scope.workflow_id)
    rows = Policies(engine).concerning(workspace_id, scope.workflow_id)
    paused = next(each for each in decided(rows, database_now(engine)) if each.field == "paused")
    by = paused.by if paused.value else None
    return Switched(
        scope="workflow" if scope.workflow_id else "workspace" if scope.workspace_id else "all",
        workspace_id=scope.workspace_id or None,
        workflow_id=scope.workflow_id or None,
        changed=changed,
        paused=by is not None,
        paused_by=None if by is None else str(by.scope),
        paused_until=None if by is None else by.paused_until,
        maintenance=any(each.maintenance for each in rows),
    )
