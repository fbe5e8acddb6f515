"""Find the scope that an operator named: all runs, a workspace, or a workflow by its id or the beginning of it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.ops.runs.author import storable
from orcheo_dispatch.ops.runs.list import WORKFLOW_WITH_RUNS, WORKFLOWS_WITH_RUNS, only_one
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Scope
from orcheo_dispatch.shared.ledger.statements.policy import (
    FIND_POLICY_WORKFLOW,
    MAY_READ_WORKSPACES,
    NOW,
    WORKSPACE_IN_USE,
    WORKSPACE_OF_RUNS,
)

_WORKSPACE = text("SELECT EXISTS (SELECT FROM workspaces AS w WHERE w.id::text = :given)")
_MAY_READ_OWNER = text("SELECT COALESCE(has_column_privilege('workflows', 'workspace_id', 'SELECT'), false)")
_OWNER = text("SELECT w.workspace_id FROM workflows AS w WHERE w.id = :given")


def check_scope(every: bool, workspace: str | None, workflow: str | None) -> None:
    """Raise `SettingsError` unless exactly one scope was named."""
    if every + (workspace is not None) + (workflow is not None) != 1:
        raise SettingsError("expected one of --all, --workspace and --workflow")
    for option, value in {"--workspace": workspace, "--workflow": workflow}.items():
        if value == "":
            raise SettingsError.wrong(option, value, "an id")


def find_scope(engine: Engine, workspace: str | None, workflow: str | None) -> Scope:
    """Return the scope of these options, all runs if both are None.

    Raises `DispatchError` if there is no such workspace or workflow, `SettingsError` if several workflows match.
    """
    if workspace is None and workflow is None:
        return ALL
    with transaction(engine) as connection:
        if workflow is not None:
            return Scope(workflow_id=find_workflow(connection, workflow))
        return Scope(workspace_id=find_workspace(connection, workspace or ""))


def find_workflow(connection: Connection, given: str) -> str:
    """Return the id of the workflow that has this id, or whose id alone begins so. Raises as `find_scope`."""
    rows = connection.execute(FIND_POLICY_WORKFLOW, {"given": storable(given)}).all() if given else []
    if not rows:
        raise DispatchError(f"there is no workflow {given!r}")
    return only_one("workflow", given, [row.id for row in rows if row.exact or not rows[0].exact][:4], "")


def find_workflow_with_runs(connection: Connection, given: str) -> str:
    """Return the id of the workflow whose runs a filter names; it may have been deleted. Raises as `find_scope`."""
    wanted = storable(given)
    if connection.scalar(WORKFLOW_WITH_RUNS, {"given": wanted}):
        return wanted
    rows = [row.id for row in connection.execute(WORKFLOWS_WITH_RUNS, {"given": wanted})] if given else []
    if not rows:
        raise DispatchError(f"there is no workflow with runs {given!r}")
    return only_one("--workflow", given, rows, "")


def find_workspace(connection: Connection, given: str) -> str:
    """Return the id of a workspace that exists, or that this role cannot look up. Raises `DispatchError`."""
    wanted = storable(given)
    known = connection.scalar(WORKSPACE_IN_USE, {"of_workspace": wanted}) or not connection.scalar(MAY_READ_WORKSPACES)
    if not known and not connection.scalar(_WORKSPACE, {"given": wanted}):
        raise DispatchError(f"there is no workspace {given!r}")
    return wanted


def workspace_of(connection: Connection, workflow_id: str) -> str:
    """Return the workspace of a workflow; '' if it has none, or if this role may not know it."""
    if connection.scalar(_MAY_READ_OWNER) and (found := connection.scalar(_OWNER, {"given": workflow_id})):
        return str(found)
    return str(connection.scalar(WORKSPACE_OF_RUNS, {"of_workflow": workflow_id}) or "")


def database_now(engine: Engine) -> datetime:
    """Return the time of the database, which decides when a pause ends."""
    with transaction(engine) as connection:
        now = connection.scalar(NOW)
        assert isinstance(now, datetime)
        return now
