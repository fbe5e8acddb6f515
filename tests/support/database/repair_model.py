"""What the statements of operators choose, and what they do to one run, computed in Python, to compare them with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from tests.support.database.comparing import Row
from tests.support.database.run_states import NOBODY, Entry, Retry, State


@dataclass(frozen=True)
class Wanted:
    """A filter of runs; what is None or empty is none. Ages are in seconds; `since` wins over `since_ago`."""

    after: str = ""
    statuses: Collection[str] = ()
    workflow: str | None = None
    workspace: str | None = None
    error_class: str | None = None
    older_than: int | None = None
    since: int | None = None
    since_ago: int | None = None
    dead: bool = False
    waiting: bool = False

    def chooses(self, state: State) -> bool:
        """Whether the run is chosen, wherever `after` is."""
        youngest = self.since if self.since is not None else self.since_ago
        return (
            state.status is not None
            and (not self.statuses or state.status in self.statuses)
            and self.workflow in (None, state.workflow)
            and (self.workspace is None or state.workspace == self.workspace)
            and (self.error_class is None or (state.entry is not None and state.entry.reason == self.error_class))
            and (self.older_than is None or state.created > self.older_than)
            and (youngest is None or state.created <= youngest)
            and (not self.dead or state.dead)
            and (not self.waiting or state.waits)
        )


_AFTER = {"cancel": "cancelled", "fail": "failed", "requeue": "pending"}
_OUTCOME = {"cancel": "cancelled", "fail": "failed", "requeue": "requeued"}


def repair(
    state: State, *, run_ids: Collection[str], action: str, reason: str, from_start: bool, dry_run: bool
) -> tuple[Row, State]:
    """Cancel, fail or requeue a run; return what the statement returns of it, or None, and the run afterwards."""
    if state.id not in run_ids or state.status is None:
        return None, state
    refused, after = _refusal(state, action), _AFTER[action]
    row = (state.id, state.workflow, state.workspace, state.status, after, refused)
    if refused or dry_run:
        return row, state
    if action == "requeue":
        again = {"started": None, "completed": None, "error": None}
        moved = state.moved(after, "run_requeued", {"reason": reason}, **again)
    else:
        key = "error" if action == "fail" else "reason"
        moved = state.moved(after, f"run_{after}", {key: reason}, error=reason, completed="now")
    return row, moved if state.entry is not None and state.live else _entered(moved, action, from_start)


def _refusal(state: State, action: str) -> str | None:
    if action == "requeue":
        if state.status == "pending":
            return "run is pending already"
        if state.status == "succeeded":
            return "run has succeeded"
        if state.status == "running" and state.question:
            return "run waits for an answer"
    elif state.status not in ("pending", "running") and not (state.status == "failed" and state.scheduled):
        return f"run is {state.status}"
    if action != "cancel" and state.live:
        return "its worker is alive: cancel it first"
    return None


def _entered(state: State, action: str, from_start: bool) -> State:
    """Settle the run in the ledger, where it may be new, and give up its retry."""
    requeues = action == "requeue"
    if (entry := state.entry) is None:
        slot = "none" if state.workspace is None else "held" if requeues else "due"
        entered = Entry("settled", _OUTCOME[action], slot=slot, reason="by hand", settled=0, dispatcher=NOBODY)
    else:
        entered = replace(
            entry,
            state="settled",
            outcome=_OUTCOME[action],
            settled=0,
            lease=None,
            reason="by hand",
            attempts=0 if requeues else entry.attempts,
            refunded=0 if requeues else entry.refunded,
            slot="due" if not requeues and entry.slot == "held" else entry.slot,
        )
    retry = state.retry
    if retry is not None or from_start:
        retries = retry.retries if retry is not None and not requeues else 0
        retry = Retry(retries, None, state.checkpoint if from_start else None)
    return replace(state, entry=entered, retry=retry)


def answer(state: State, *, run_ids: Collection[str], given: Any, dry_run: bool) -> tuple[Row, State]:
    """Answer a run that waits at an interrupt."""
    if state.id not in run_ids or state.status is None:
        return None, state
    refused = None
    if not state.waits:
        refused = "run does not wait for an answer"
    elif (state.question or 0) > 1 and not isinstance(given, dict):
        refused = f"run waits for {state.question} answers: expected an object with the id of each interrupt as key"
    row = (state.id, state.workflow, state.workspace, state.status, "pending", refused)
    if refused or dry_run:
        return row, state
    assert state.entry is not None
    told = state.entered(refunded=state.entry.attempts, reason="answered")
    return row, replace(told.moved("pending", "run_answered", {"reason": "Answered."}, started=None), question=None)
