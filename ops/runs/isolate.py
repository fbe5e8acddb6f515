"""Record an operator's decision to isolate a workflow: which one, by whom, and why."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, TextClause

from orcheo_dispatch.ops.runs.author import author, storable
from orcheo_dispatch.ops.runs.list import only_one
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.ledger.isolations import Isolated, Isolations
from orcheo_dispatch.shared.ledger.statements.isolate import FIND_VERSION, FIND_WORKFLOW


def set_isolation(
    engine: Engine, workflow: str, version: str | None, *, why: str | None, seconds: float | None
) -> Isolated:
    """Isolate a workflow, or one version of it, for `seconds` or until it is cleared.

    Raises `DispatchError` where there is no such workflow or version, `SettingsError` where there are several.
    """
    workflow_id, version_id = _find(engine, workflow, version)
    return Isolations(engine).isolate(workflow_id, version_id, author(why), seconds=seconds)


def clear_isolation(engine: Engine, workflow: str, version: str | None) -> list[Isolated]:
    """Have a workflow and all of its versions, or one version, share processes again; return what was isolated.

    Raises what `set_isolation` raises.
    """
    workflow_id, version_id = _find(engine, workflow, version)
    return Isolations(engine).clear(workflow_id, version_id, author())


def _find(engine: Engine, workflow: str, version: str | None) -> tuple[str, str | None]:
    with transaction(engine) as connection:
        workflow_id = _one(connection, "workflow", FIND_WORKFLOW, workflow)
        if version is None:
            return workflow_id, None
        return workflow_id, _one(connection, "version", FIND_VERSION, version, workflow_id=workflow_id)


def _one(connection: Connection, what: str, statement: TextClause, given: str, **parameters: str) -> str:
    rows = connection.execute(statement, {"given": storable(given), **parameters}).all() if given else []
    if not rows:
        raise DispatchError(f"there is no {what} {given!r}")
    return only_one(what, given, [row.id for row in rows if row.exact or not rows[0].exact][:4], "")
