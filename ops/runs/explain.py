"""Explain what is in force for a workflow: each field, what decided it, and how much of each limit is in use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from orcheo_dispatch.ops.runs.scopes import database_now, find_workflow, workspace_of
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.operators.policies import Policies, Policy, decided
from orcheo_dispatch.shared.ledger.statements.policy import POLICY_USE, WORKERS_OF_QUEUE
from orcheo_dispatch.shared.settings.field_types import DEFAULT_QUEUE_NAME
from orcheo_dispatch.shared.settings.model import Settings

_VARIABLES = {
    "timeout_seconds": "ORCHEO_WORKER_RUN_TIMEOUT",
    "lost_runs": "ORCHEO_DISPATCH_LOST_RUNS",
    "retries": "ORCHEO_DISPATCH_RETRIES",
    "isolation": "ORCHEO_WORKER_ISOLATION",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field that is in force, and what decided it."""

    field: str
    value: Any
    scope: str | None
    """`workflow`, `workspace` or `all`: the scope of the policy that decided; None: no policy did."""
    variable: str | None
    """The variable that decided, as this command sees it; None: a policy did, or the value is the only default."""
    by: str | None
    at: datetime | None
    why: str | None


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of one scope, and how much of them is in use now. `rate_seconds` is the period of the rate."""

    scope: str
    max_running: int | None
    variable: str | None
    """The variable that sets `max_running`, as this command sees it; None: a policy does, or nothing."""
    running: int
    rate_runs: int | None
    rate_seconds: int | None
    claims: int
    priority: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is in force for the runs of a workflow."""

    workflow_id: str
    workspace_id: str | None
    maintenance: bool
    paused: bool
    paused_until: datetime | None
    queue: str
    workers: int
    """Live workers that consume its queue."""
    pending: int
    """Its pending runs that a dispatcher claims."""
    fields: list[Field]
    limits: list[Limit]

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def explain(engine: Engine, given: str, settings: Settings) -> Explanation:
    """Return what is in force for the workflow with the id `given`, or with the only id that begins so.

    Raises `DispatchError` if there is none, `SettingsError` if there are several.
    """
    with transaction(engine) as connection:
        workflow_id = find_workflow(connection, given)
        workspace_id = workspace_of(connection, workflow_id)
        use = (
            connection.execute(POLICY_USE, {"of_workflow": workflow_id, "of_workspace": workspace_id}).mappings().one()
        )
    rows = Policies(engine).concerning(workspace_id, workflow_id)
    found = {each.field: each for each in decided(rows, database_now(engine))}
    queue = found["queue"].value or DEFAULT_QUEUE_NAME
    with transaction(engine) as connection:
        workers = int(connection.scalar(WORKERS_OF_QUEUE, {"queue": queue}) or 0)
    by = {_scope(each): each for each in rows}
    paused = found["paused"]
    return Explanation(
        workflow_id=workflow_id,
        workspace_id=workspace_id or None,
        maintenance=any(each.maintenance for each in rows),
        paused=bool(paused.value),
        paused_until=paused.by.paused_until if paused.by is not None and paused.value else None,
        queue=queue,
        workers=workers,
        pending=use["pending"],
        fields=[_field(each.field, each.value, each.by, settings) for each in found.values()],
        limits=[_limit(scope, by.get(scope), use, settings) for scope in _scopes(workspace_id)],
    )


def _scopes(workspace_id: str) -> list[str]:
    return ["workflow", *(["workspace"] if workspace_id else []), "all"]


def _scope(policy: Policy) -> str:
    return "workflow" if policy.workflow_id else "workspace" if policy.workspace_id else "all"


def _field(name: str, value: Any, by: Policy | None, settings: Settings) -> Field:
    if by is not None:
        return Field(name, value, _scope(by), None, by.by, by.at, by.why)
    of_settings: dict[str, Any] = {
        "paused": False,
        "queue": DEFAULT_QUEUE_NAME,
        "timeout_seconds": settings.run_timeout,
        "lost_runs": settings.lost_runs.value,
        "retries": settings.retries.value,
        "isolation": settings.isolation.value,
    }
    return Field(name, of_settings[name], None, _VARIABLES.get(name), None, None, None)


def _limit(scope: str, policy: Policy | None, use: Any, settings: Settings) -> Limit:
    most = policy.max_running if policy is not None else None
    variable = None
    if most is None and scope != "all":
        most = getattr(settings, f"max_running_per_{scope}")
        variable = f"ORCHEO_DISPATCH_MAX_RUNNING_PER_{scope.upper()}" if most is not None else None
    return Limit(
        scope,
        most,
        variable,
        use[f"running_of_{scope}"],
        policy.rate_runs if policy is not None else None,
        policy.rate_seconds if policy is not None else None,
        use[f"claims_of_{scope}"],
        policy.priority if policy is not None else None,
    )
