"""Decide which runner executes which run.

A shared runner executes runs of one workspace, and the least loaded one is chosen; a dedicated runner executes a single
run. While the event loops of all runners of a workspace are blocked, a spare joins them; afterwards, one that has no
runs ends. At most `most` runners exist at a time. If there is none for a run, an idle runner of another workspace ends
to make room. If all are busy, the runner that has served its workspace longest gets no new runs, and ends when its runs
have ended. So workspaces beyond the limit take turns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.runners.runner import Runner

_TURN_SECONDS = 1.0
"""Minimum time that a runner serves one workspace while others wait (seconds)."""


class Waiting:
    """Runs that have no runner yet: workspaces take turns, and runs of one workspace are in order of arrival."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, bool], deque[Execution]] = {}

    def __len__(self) -> int:
        return sum(len(turn) for turn in self._turns.values())

    def __iter__(self) -> Iterator[Execution]:
        return (execution for turn in self._turns.values() for execution in turn)

    def add(self, execution: Execution, *, dedicated: bool) -> None:
        """Add a run after the others of its workspace."""
        self._turns.setdefault((execution.run.workspace_id, dedicated), deque()).append(execution)

    def remove(self, execution: Execution) -> bool:
        """Remove a run; return whether it was waiting."""
        for turn, executions in self._turns.items():
            if execution in executions:
                executions.remove(execution)
                if not executions:
                    del self._turns[turn]
                return True
        return False

    def turns(self) -> list[tuple[str, bool]]:
        """Return the waiting workspaces, longest wait first, and whether each waits for a dedicated runner."""
        return list(self._turns)

    def count(self, workspace: str, *, dedicated: bool) -> int:
        """Return how many runs of a workspace wait."""
        return len(self._turns.get((workspace, dedicated), ()))

    def take(self, workspace: str, *, dedicated: bool) -> Execution:
        """Remove and return the first run of a workspace; its next run comes after those of all other workspaces."""
        turn = workspace, dedicated
        executions = self._turns.pop(turn)
        first = executions.popleft()
        if executions:
            self._turns[turn] = executions
        return first


def assign(runners: Collection[Runner], workspace: str, *, dedicated: bool, processes: int) -> Runner | None:
    """Return the runner for a run of this workspace; a spare that is chosen belongs to the workspace from now on."""
    spare = next((each for each in runners if each.workspace is None and each.is_free), None)
    if not dedicated:
        own = [each for each in runners if each.workspace == workspace and not each.dedicated]
        shared = min((each for each in own if each.is_free), key=lambda each: len(each.executions), default=None)
        if shared is not None and (not shared.executions or spare is None or len(own) >= processes):
            return shared
    if spare is not None:
        spare.assign(workspace, dedicated=dedicated)
    return spare


def plan(
    runners: Collection[Runner], waiting: Waiting, *, starting: int, processes: int, most: int
) -> tuple[int, list[Runner]]:
    """Return how many runners to start now, and which must end: as surplus, or so that others can be started.

    Besides the spares for waiting runs, keep one ready, or more if fewer than `processes` runners exist.
    """
    turns = waiting.turns()
    missing = sum(waiting.count(workspace, dedicated=True) if dedicated else 1 for workspace, dedicated in turns)
    spares = starting + sum(each.workspace is None and not each.draining for each in runners)
    room = max(0, most - starting - len(runners))
    starts = min(missing + max(1, processes - len(runners)) - spares, room)
    leaving = list(_surplus(runners, processes))
    for _ in range(missing - spares - room - sum(each.draining for each in runners)):
        staying = [each for each in runners if each not in leaving]
        one = _idle_of_others(staying, turns[0][0]) or _longest_served(staying, turns[0][0])
        if one is None:
            break
        leaving.append(one)
    return max(0, starts), leaving


def _surplus(runners: Iterable[Runner], processes: int) -> Iterator[Runner]:
    """Yield a shared runner without runs of each workspace that has more than `processes` free ones."""
    free: dict[str, list[Runner]] = {}
    for each in runners:
        if each.workspace is not None and not each.dedicated and each.is_free:
            free.setdefault(each.workspace, []).append(each)
    for own in free.values():
        if len(own) > processes:
            yield from [each for each in own if not each.executions][:1]


def _idle_of_others(runners: Iterable[Runner], workspace: str) -> Runner | None:
    """Return the least recently used shared runner without runs, of any workspace but this one."""
    idle = [
        each
        for each in runners
        if each.workspace not in (None, workspace) and not each.executions and not each.dedicated and each.is_free
    ]
    return min(idle, key=lambda each: each.used_at, default=None)


def _longest_served(runners: Iterable[Runner], workspace: str) -> Runner | None:
    """Return the busy shared runner that must end for a waiting workspace; prefer workspaces with several runners."""
    busy = [each for each in runners if not each.dedicated and each.is_free and each.workspace not in (None, workspace)]
    several = {each.workspace for each in busy if sum(other.workspace == each.workspace for other in busy) > 1}
    now = time.monotonic()
    turned = [each for each in busy if each.workspace in several or now - each.assigned_at >= _TURN_SECONDS]
    return min(turned, key=lambda each: (each.workspace not in several, each.assigned_at), default=None)
