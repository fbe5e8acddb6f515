"""What a claim takes, in turn or oldest first, computed in Python, to compare the statements with.

It knows rows, policies and the position of a dispatcher; nothing of locks, which have tests of their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

LIVE = ("claimed", "published", "running")
_WAITING = ("claimed", "published")


@dataclass(frozen=True)
class Row:
    """A run, and its row of the ledger if it has one. Later rows are younger."""

    id: str
    workflow: str
    workspace: str | None
    status: str = "pending"
    label: str = "webhook"
    chatkit: bool = False
    state: str | None = None
    queue: str | None = None
    """The queue that it was claimed for."""

    @property
    def key(self) -> tuple[str, str]:
        """Workspace and workflow."""
        return self.workspace or "", self.workflow


@dataclass(frozen=True)
class Policy:
    """What an operator decided; `pause_over` says whether the pause has ended."""

    maintenance: bool | None = None
    paused: bool | None = None
    pause_over: bool = False
    queue: str | None = None
    priority: int | None = None
    max_running: int | None = None
    rate_runs: int | None = None

    @property
    def pauses(self) -> bool | None:
        """Whether runs of the scope are paused now."""
        return None if self.pause_over else self.paused


@dataclass(frozen=True)
class Use:
    """Claims that count against the rate of a scope, if they are not `over`."""

    workspace: str
    workflow: str
    runs: int
    over: bool


@dataclass
class Case:
    """Everything that a claim depends on."""

    rows: list[Row]
    policies: dict[tuple[str, str], Policy] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    room: int = 10
    default_room: int = 10
    max_queued: int = 10
    consumed: tuple[str, ...] = ()
    per_workflow: int | None = None
    per_workspace: int | None = None
    every_trigger: bool = False
    skipped: tuple[str, ...] = ()
    keys: int = 64
    after_workspace: str = ""
    begun: dict[str, str] = field(default_factory=dict)
    """The last workflow that had a turn, by workspace."""
    given: list[tuple[str, str]] | None = None
    """The keys that are asked for, in place of the next ones in turn."""


@dataclass(frozen=True)
class Taken:
    """What a claim takes of one key."""

    workspace: str
    workflow: str
    queue: str | None
    run_ids: list[str]
    has_more: bool


def claim(case: Case) -> list[Taken]:
    """Return one result per key that is looked at, in turn."""
    keys = _keys(case)
    nothing = Policy()
    every = case.policies.get(("", ""), nothing)
    of_workflow: dict[tuple[str, str], int] = {}
    of_workspace: dict[str, int] = {}
    queues: dict[tuple[str, str], str | None] = {}
    weights: dict[tuple[str, str], float] = {}
    seen: set[str] = set()
    for workspace, workflow in keys:
        own, wider = case.policies.get(("", workflow), nothing), _of_workspace(case, workspace)
        queue = queues[workspace, workflow] = _queue(own, wider, every)
        weights[workspace, workflow] = 2.0 ** (own.priority or 0)
        limited = (case.per_workflow, own.max_running, own.rate_runs) != (None, None, None)
        # A workflow with a limit has one turn at a time, although it has runs in several workspaces.
        none = _paused(own, wider, every) or (limited and workflow in seen)
        room_of_queue = case.default_room if queue is None else _room_of(case, queue)
        left_of_workflow = _left_of_workflow(case, workflow, own)
        of_workflow[workspace, workflow] = 0 if none else min(room_of_queue, left_of_workflow)
        seen.add(workflow)
        of_workspace[workspace] = _left_of_workspace(case, workspace, wider)
    room = _room(case, every)
    served = [key for key in keys if of_workflow[key] > 0 and of_workspace[key[0]] > 0]
    shares = {key: of_workflow[key] for key in keys}
    for workspace in {key[0] for key in served}:
        mine, all_of_them = _weight(case, workspace), sum(_weight(case, each) for each in {key[0] for key in served})
        of_workspace[workspace] = min(of_workspace[workspace], math.ceil(room * mine / all_of_them))
        together = sum(weights[key] for key in served if key[0] == workspace)
        for key in keys:
            if key[0] == workspace:
                share = math.ceil(of_workspace[workspace] * weights[key] / together)
                shares[key] = min(of_workflow[key], share)
    found = []
    left = room
    left_of = dict(of_workspace)
    for key in keys:
        most = max(0, min(shares[key], left_of[key[0]], left))
        run_ids = [row.id for row in islice(_claimable(case, key), most)]
        left -= len(run_ids)
        left_of[key[0]] -= len(run_ids)
        more = 0 < shares[key] == len(run_ids) < of_workflow[key]
        found.append(Taken(*key, queues[key], run_ids, more))
    return found


@dataclass(frozen=True)
class Oldest:
    """What a claim that takes the oldest runs first takes."""

    found: int
    """Runs that were looked at and locked."""
    claims: list[tuple[str, str | None]]
    """Those that do not exceed a limit, with their queues."""


def claim_oldest(case: Case) -> Oldest:
    """Return what a claim takes that ignores turns, priorities and the keys that are asked for."""
    nothing = Policy()
    every = case.policies.get(("", ""), nothing)
    found: list[tuple[Row, str | None]] = []
    for row in case.rows:
        own, wider = case.policies.get(("", row.workflow), nothing), _of_workspace(case, row.workspace or "")
        queue = _queue(own, wider, every)
        room = case.default_room if queue is None else _room_of(case, queue)
        if (
            _is_claimable(case, row)
            and not _paused(own, wider, every)
            and room > 0
            and _left_of_workflow(case, row.workflow, own) > 0
            and _left_of_workspace(case, row.workspace or "", wider) > 0
        ):
            found.append((row, queue))
    found = found[: _room(case, every)]
    workflows, workspaces, queues = Counter[str](), Counter[str | None](), Counter[str | None]()
    claims = []
    for row, queue in found:
        workflows[row.workflow] += 1
        workspaces[row.workspace] += 1
        queues[queue] += 1
        own, wider = case.policies.get(("", row.workflow), nothing), _of_workspace(case, row.workspace or "")
        if (
            workflows[row.workflow] <= _left_of_workflow(case, row.workflow, own)
            and workspaces[row.workspace] <= _left_of_workspace(case, row.workspace or "", wider)
            and queues[queue] <= (case.default_room if queue is None else _room_of(case, queue))
        ):
            claims.append((row.id, queue))
    return Oldest(len(found), claims)


def _keys(case: Case) -> list[tuple[str, str]]:
    """Return the keys that are looked at, in turn: some workflows of some workspaces, after those that had a turn."""
    if case.given is not None:
        return sorted(case.given)
    pending = {row.key for row in case.rows if row.status == "pending"}
    workspaces = _after(case.after_workspace, {workspace for workspace, _ in pending}, case.keys)
    most = max(1, case.keys // max(1, len(workspaces)))
    return [
        (workspace, workflow)
        for workspace in workspaces
        for workflow in _after(case.begun.get(workspace, ""), {w for each, w in pending if each == workspace}, most)
    ]


def _after(last: str, names: Iterable[str], most: int) -> list[str]:
    names = sorted(names)
    return [*(name for name in names if name > last), *(name for name in names if name <= last)][:most]


def _of_workspace(case: Case, workspace: str) -> Policy:
    return case.policies.get((workspace, ""), Policy()) if workspace else Policy()


def _weight(case: Case, workspace: str) -> float:
    return 2.0 ** (_of_workspace(case, workspace).priority or 0)


def _room(case: Case, every: Policy) -> int:
    if every.maintenance:
        return 0
    bounds = [case.room]
    if every.max_running is not None:
        bounds.append(every.max_running - _live(case))
    if every.rate_runs is not None:
        bounds.append(every.rate_runs - _used(case, "", ""))
    return max(0, min(bounds))


def _paused(*policies: Policy) -> bool:
    """Return whether runs are paused, by the policies from the most specific to the least."""
    return next((policy.pauses for policy in policies if policy.pauses is not None), False)


def _queue(*policies: Policy) -> str | None:
    """Return the named queue, or None for the default one."""
    name = next((policy.queue for policy in policies if policy.queue is not None), "default")
    return None if name == "default" else name


def _left_of_workflow(case: Case, workflow: str, policy: Policy) -> int:
    bounds = [case.room]
    limit = case.per_workflow if policy.max_running is None else policy.max_running
    if limit is not None:
        bounds.append(limit - _live(case, workflow=workflow))
    if policy.rate_runs is not None:
        bounds.append(policy.rate_runs - _used(case, "", workflow))
    return max(0, min(bounds))


def _left_of_workspace(case: Case, workspace: str, policy: Policy) -> int:
    bounds = [case.room]
    limit = case.per_workspace if policy.max_running is None else policy.max_running
    if workspace and limit is not None:
        bounds.append(limit - _live(case, workspace=workspace))
    if policy.rate_runs is not None:
        bounds.append(policy.rate_runs - _used(case, workspace, ""))
    return max(0, min(bounds))


def _room_of(case: Case, queue: str) -> int:
    """Return how many more claims a named queue takes; none, if no live worker consumes it."""
    waiting = sum(row.state in _WAITING and row.queue == queue for row in case.rows)
    return max(0, case.max_queued - waiting) if queue in case.consumed else 0


def _live(case: Case, *, workspace: str | None = None, workflow: str | None = None) -> int:
    return sum(
        row.state in LIVE
        and (workspace is None or (row.workspace or "") == workspace)
        and (workflow is None or row.workflow == workflow)
        for row in case.rows
    )


def _used(case: Case, workspace: str, workflow: str) -> int:
    used = Counter[tuple[str, str]]()
    for use in case.uses:
        if not use.over:
            used[use.workspace, use.workflow] += use.runs
    return used[workspace, workflow]


def _claimable(case: Case, key: tuple[str, str]) -> Iterator[Row]:
    """Yield the runs of a key that may be claimed, oldest first."""
    return (row for row in case.rows if row.key == key and _is_claimable(case, row))


def _is_claimable(case: Case, row: Row) -> bool:
    """Return whether a run may be claimed, whatever its policies."""
    ours = (case.every_trigger or row.label == "webhook") and not row.chatkit
    free = row.state == "settled" or (row.state is None and ours)
    return row.status == "pending" and row.id not in case.skipped and free
