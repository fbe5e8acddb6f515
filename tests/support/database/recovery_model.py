"""What the statements that recover runs do to one run, computed in Python, to compare the statements with.

Each function returns what the statement returns of the run, or None, and the run afterwards, None if the ledger has
forgotten it. Locks, and the number of runs at a time, have tests of their own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from tests.support.database.comparing import Row, Which
from tests.support.database.run_states import LIVE, US, Entry, Retry, State, Trace


@dataclass(frozen=True)
class Rules:
    """What operators decided on retries, by scope: workflow, workspace, and all runs."""

    by_workflow: dict[str, str] = field(default_factory=dict)
    by_workspace: dict[str, str] = field(default_factory=dict)
    of_all: str | None = None

    def of(self, state: State) -> str | None:
        """Return what holds for this run."""
        return self.by_workflow.get(state.workflow) or self.by_workspace.get(state.workspace or "") or self.of_all


def retry(state: State, which: Which, rules: Rules, *, from_start: bool) -> tuple[Row, State]:
    """Make a failed run pending again whose next attempt is due."""
    due = state.retry is not None and state.retry.next is not None and state.retry.next <= 0
    if state.entry is None or state.retry is None or not due or not which.takes(state):
        return None, state
    if which.choose:
        return (state.id, None), state
    failed = state.status == "failed" and state.settled
    over = failed and (rules.of(state) or ("start" if from_start else None)) == "start"
    tried = replace(state, retry=Retry(state.retry.retries, None, state.checkpoint if over else None))
    if not failed:
        return None, tried
    why = {"reason": f"Retry {state.retry.retries} of the workflow's policy."}
    again = tried.entered(outcome="requeued", reason="retry", refunded=state.entry.attempts)
    return (state.id, state.retry.retries), again.moved(
        "pending", "run_retried", why, started=None, completed=None, error=None
    )


def forget_question(state: State, which: Which) -> tuple[Row, State]:
    """Forget the question of a run that no longer waits."""
    ended = state.status is not None and state.status not in ("running", "pending")
    if state.entry is None or not state.question or not ended or not state.settled or not which.takes(state):
        return None, state
    if which.choose:
        return (state.id,), state
    forgotten = replace(state, question=None)
    if state.entry.outcome == "requeued":
        slot = _due(state.entry)
        forgotten = forgotten.entered(outcome="cancelled", reason="cancelled", settled=0, slot=slot)
    return (state.id,), forgotten


def reap_orphan(state: State, which: Which) -> tuple[Row, State]:
    """Settle the row of a run that was deleted."""
    entry = state.entry
    lapsed = entry is not None and entry.state in LIVE and (entry.lease or 0) < 0
    if entry is None or state.status is not None or not lapsed or not which.takes(state):
        return None, state
    if which.choose:
        return (state.id,), state
    return (state.id,), state.entered(
        state="settled", settled=0, lease=None, outcome="skipped", reason="run is gone", slot=_due(entry)
    )


def adopt_cancelled(
    state: State, which: Which, *, triggers: Collection[str], every_trigger: bool, younger_than: int
) -> tuple[Row, State]:
    """Give back the slot of a run that was cancelled while nobody had claimed it."""
    free = state.entry is None or (state.settled and state.entry.slot == "held")
    ours = every_trigger or state.label in triggers or state.entry is not None
    never = state.status == "cancelled" and state.started is None and state.updated < younger_than
    if not (never and state.workspace is not None and free and ours and which.takes(state)):
        return None, state
    if which.choose:
        return (state.id,), state
    if state.entry is None:
        entry = Entry("settled", "cancelled", slot="due", reason="never claimed", settled=0, dispatcher=US)
        return (state.id,), replace(state, entry=entry)
    return (state.id,), state.entered(outcome="cancelled", slot="due", settled=0, reason="never claimed again")


def prune(state: State, which: Which, *, retention: int) -> tuple[Row, State | None]:
    """Delete an old row of the ledger."""
    entry = state.entry
    old = entry is not None and state.settled and (entry.settled or 0) > retention and entry.slot != "due"
    needed = state.status in ("pending", "running") or state.scheduled
    if not old or needed or not which.takes(state):
        return None, state
    if which.choose:
        return (state.id,), state
    pruned = replace(state, entry=None, retry=None, question=None)
    return (state.id,), pruned if state.status is not None else None


def close_trace(state: State, run_ids: Collection[str]) -> tuple[Row, State]:
    """End the trace of a run that has failed or was cancelled."""
    trace = state.trace
    if trace is None or trace.status != "running" or state.id not in run_ids:
        return None, state
    if state.status not in ("failed", "cancelled"):
        return None, state
    status, key = ("cancelled", "reason") if state.status == "cancelled" else ("error", "error")
    step = Trace.step({"status": status, key: state.error})
    return (state.id,), replace(state, trace=Trace(status, state.error, 0, (*trace.steps, step)))


def slot_due(state: State, *, older_than: int, skipped: Collection[str]) -> tuple[Row, State]:
    """Return a run whose slot has been due for a while."""
    entry = state.entry
    due = entry is not None and entry.slot == "due" and entry.settled is not None and entry.settled > older_than
    return ((state.id, state.workspace) if due and state.id not in skipped else None), state


def return_slot(state: State, run_ids: Collection[str]) -> tuple[Row, State]:
    """Note that the slot of a run was given back."""
    if state.entry is None or state.entry.slot != "due" or state.id not in run_ids:
        return None, state
    return (state.id,), state.entered(slot="returned")


def _due(entry: Entry) -> str:
    return "due" if entry.slot == "held" else entry.slot
