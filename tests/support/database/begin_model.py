"""What the statements of a worker do to one run that it has a message for, computed in Python, to compare them with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tests.support.database.comparing import Row
from tests.support.database.run_states import STARTED_BY_WORKER, US, Entry, State

type Fences = Mapping[str, Collection[int]]
"""The fences of the messages of each run."""

_WHY = {
    "workspace_missing": "Run has no workspace.",
    "workspace_ambiguous": "Run names two workspaces.",
    "workspace_foreign": "Workflow is archived or unavailable.",
    "workflow_unavailable": "Workflow is archived or unavailable.",
    "workflow_archived": "Workflow is archived.",
}
_CLAIMED = 3600
"""Seconds since each claim."""


@dataclass(frozen=True)
class Workflow:
    """A workflow of the API; without an owner it belongs to all workspaces."""

    owner: str | None
    archived: bool = False


@dataclass(frozen=True)
class Policies:
    """What operators decided for workflows, workspaces and all runs: pauses, maintenance, and timeouts in seconds."""

    paused: Mapping[str, bool] = field(default_factory=dict)
    """By scope: 'workflow w1', 'workspace a' or 'all'."""
    timeouts: Mapping[str, int] = field(default_factory=dict)
    maintenance: bool | None = None

    def held(self, state: State) -> str | None:
        """Return why the run may not begin now, if so."""
        if self.maintenance:
            return "maintenance"
        return "paused" if _narrowest(self.paused, state) else None

    def told(self, state: State) -> str | None:
        """Return what a worker is told of the policies of a run that begins, as JSON."""
        timeout = _narrowest(self.timeouts, state)
        return None if timeout is None else f'{{"timeout": {timeout}}}'


def _narrowest[T](by_scope: Mapping[str, T], state: State) -> T | None:
    scopes = (f"workflow {state.workflow}", f"workspace {state.workspace or None}", "all")
    return next((by_scope[scope] for scope in scopes if scope in by_scope), None)


def begin(
    state: State, *, fences: Fences, workflows: Mapping[str, Workflow], policies: Policies, lease: int
) -> tuple[Row, State]:
    """Begin a run for which there is a message with its fence."""
    entry = state.entry
    if entry is None or entry.fence not in fences.get(state.id, ()) or entry.state not in ("claimed", "published"):
        return None, state
    rejected = _rejected(state, workflows) if state.status == "pending" else None
    held = policies.held(state) if state.status == "pending" and not rejected else None
    if state.status == "pending" and not rejected and not held:
        return _begun(state, entry, policies, lease)
    status = state.status
    reason = rejected or held or f"run is {status or 'gone'}"
    outcome = "released" if held else "cancelled" if rejected or status == "cancelled" else "skipped"
    settled = replace(
        entry, state="settled", outcome=outcome, settled=0, reason=reason, slot=_slot(state, entry, rejected)
    )
    settled = replace(settled, begun=None, heartbeat=None, lease=None, worker=US)
    attempts, first = _attempts(settled)
    whose = (entry.fence, "settled", reason, rejected is not None, attempts, settled.slot, state.workspace)
    row = (state.id, *whose, *(None,) * 7, entry.suspect, first, None)
    after = replace(state, entry=settled)
    if rejected:
        why = _WHY[rejected]
        after = after.moved("cancelled", "run_cancelled", {"reason": why}, error=why, completed="now")
    return row, after


def _begun(state: State, entry: Entry, policies: Policies, lease: int) -> tuple[Row, State]:
    running = replace(
        entry,
        state="running",
        outcome=None,
        settled=None,
        reason=None,
        begun=0,
        heartbeat=0,
        lease=lease,
        attempts=entry.attempts + 1,
        worker=US,
    )
    attempts, first = _attempts(running)
    of_entry = (entry.fence, "running", None, False, attempts, entry.slot, state.workspace)
    times = (float(state.created - _CLAIMED), float(_CLAIMED))
    of_run = (state.workflow, "v", state.label, *times, json.dumps({"source": state.source}), "{}")
    row = (state.id, *of_entry, *of_run, entry.suspect, first, policies.told(state))
    return row, replace(state, entry=running).moved("running", "run_started", {}, started="now")


def _rejected(state: State, workflows: Mapping[str, Workflow]) -> str | None:
    """Return why a pending run must not be executed, if so."""
    workflow = workflows.get(state.workflow)
    if state.workspace is None:
        return "workspace_missing"
    if state.named not in (None, state.workspace):
        return "workspace_ambiguous"
    if workflow is None:
        return "workflow_unavailable"
    if workflow.owner not in (None, state.workspace):
        return "workspace_foreign"
    return "workflow_archived" if workflow.archived else None


def _slot(state: State, entry: Entry, rejected: str | None) -> str:
    """Return what becomes of the slot of a run that does not begin."""
    if entry.slot != "held":
        return entry.slot
    if state.status in ("succeeded", "failed") and STARTED_BY_WORKER in state.audit and entry.attempts == 0:
        return "returned"
    return "due" if rejected or state.status in (None, "cancelled", "failed", "succeeded") else "held"


def _attempts(entry: Entry) -> tuple[int, bool]:
    """Return the attempts that count, and whether the last one was the first."""
    return max(entry.attempts - entry.refunded, 1), entry.attempts == 1


def refuse(state: State, *, errors: Mapping[tuple[str, int], str]) -> tuple[Row, State]:
    """Fail a pending run whose begin Postgres refuses; `errors` by run and fence of the message."""
    entry = state.entry
    if entry is None or state.status != "pending" or entry.state not in ("claimed", "published"):
        return None, state
    if (error := errors.get((state.id, entry.fence))) is None:
        return None, state
    slot = "due" if entry.slot == "held" else entry.slot
    failed = replace(
        entry, state="settled", outcome="failed", settled=0, lease=None, reason="begin_refused", slot=slot, worker=US
    )
    after = replace(state, entry=failed).moved("failed", "run_failed", {"error": error}, error=error, completed="now")
    return (state.id, entry.fence, slot, state.workspace), after


def heartbeat(state: State, *, fences: Fences, worker: str | None, lease: int) -> tuple[Row, State]:
    """Extend the lease of a run that a worker executes; of any worker, if it is None."""
    if not _executed_by(state, fences, worker):
        return None, state
    assert state.entry is not None
    return (state.id, state.entry.fence, True), state.entered(heartbeat=0, lease=lease)


def ended_by_api(state: State, *, fences: Fences, worker: str | None) -> tuple[Row, State]:
    """Return a run that a worker executes and that has ended meanwhile."""
    if not _executed_by(state, fences, worker) or state.status == "running":
        return None, state
    assert state.entry is not None
    return (state.id, state.entry.fence), state


def _executed_by(state: State, fences: Fences, worker: str | None) -> bool:
    entry = state.entry
    if entry is None or entry.state != "running" or entry.fence not in fences.get(state.id, ()):
        return False
    return worker in (None, entry.worker)
