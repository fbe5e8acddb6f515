"""What a dispatcher finds to do, and which runs it admits, computed in Python, to compare the statements with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.support.database.comparing import Row, Which
from tests.support.database.run_states import US, Entry, State

_WAITING = ("claimed", "published")


@dataclass(frozen=True)
class Kinds:
    """Which kinds of policies there are."""

    limited: bool = False
    rated: bool = False
    named_queues: bool = False
    maintenance: bool | None = None


@dataclass(frozen=True)
class Ours:
    """Whose runs a dispatcher claims."""

    triggers: Sequence[str]
    every_trigger: bool

    def listed(self, state: State) -> bool:
        """Whether it claims the run, if it is pending, without being told."""
        if state.of_chatkit:
            return False
        return self.every_trigger or state.label in self.triggers

    def pending(self, state: State) -> bool:
        """Whether it is a pending run that it claims."""
        return state.status == "pending" and (state.entry is not None or self.listed(state))


DEFAULT = Ours(("webhook", "cron"), every_trigger=False)
"""What counts as long as no dispatcher has been there."""


def look(states: Collection[State], ours: Ours, kinds: Kinds) -> dict[str, object]:
    """Return what there is to do."""
    entries = [state.entry for state in states if state.entry]
    waiting = [entry for entry in entries if entry.state in _WAITING]
    default = [entry for entry in waiting if entry.queue is None]
    return {
        "lost": any(state.stuck for state in states),
        "lapsed": any((entry.lease or 0) < 0 for entry in waiting),
        "retries": any(each.retry and each.retry.next is not None and each.retry.next <= 0 for each in states),
        "queued": len(default if kinds.named_queues else waiting),
        "pending": any(map(ours.pending, states)),
        "limited": kinds.limited or kinds.rated,
        "rated": kinds.rated,
        "named_queues": kinds.named_queues,
        "maintenance": bool(kinds.maintenance),
        "read_only": False,
    }


def admit_pushed(state: State, *, workspaces: Mapping[str, str | None], ours: Ours) -> tuple[Row, State]:
    """Admit a run that a push names with its workspace, unless dispatchers claim it anyway."""
    named = workspaces[state.id]
    if state.status is None:
        return (state.id, named, False, False, False), state
    unlisted = state.status == "pending" and not ours.listed(state)
    same = state.workspace == named
    admitted = unlisted and same and state.entry is None
    row = (state.id, named, True, admitted, unlisted and not same)
    return row, _admitted(state, "pushed") if admitted else state


def admit_labelled(state: State, *, ours: Ours, older_than: int, which: Which) -> tuple[Row, State]:
    """Admit a run of a manual dispatch whose push was lost."""
    if state.status != "pending" or state.entry or ours.every_trigger or state.label in ours.triggers:
        return None, state
    actor, action, _ = state.audit[0].split(" ", 2)
    manual = action == "run_created" and actor != state.label
    if state.created <= older_than or not manual or not which.takes(state):
        return None, state
    return (state.id,), state if which.choose else _admitted(state, "push_lost")


def claim_given(
    state: State, *, run_ids: Collection[str], queues: Mapping[str, str], least: int, lease: int
) -> tuple[Row, State]:
    """Claim a run that was chosen before, for the queue of its workflow; fences of this time are above `least`."""
    if state.id not in run_ids or state.status != "pending" or (state.entry and state.entry.state != "settled"):
        return None, state
    decided = queues.get(state.workflow)
    queue = None if decided == "default" else decided
    if (entry := state.entry) is None:
        slot = "none" if state.workspace is None else "held"
        claimed = Entry("claimed", fence=least + 1, slot=slot, lease=lease, dispatcher=US, queue=queue)
    else:
        claimed = Entry(
            "claimed",
            fence=least + entry.fence + 1,
            slot=entry.slot,
            attempts=entry.attempts,
            refunded=entry.refunded,
            lease=lease,
            dispatcher=US,
            suspect=entry.suspect,
            queue=queue,
        )
    return (state.id, claimed.fence, queue, state.workflow, state.workspace or ""), replace(state, entry=claimed)


def _admitted(state: State, reason: str) -> State:
    slot = "none" if state.workspace is None else "held"
    return replace(state, entry=Entry("settled", "released", slot=slot, reason=reason, settled=0, dispatcher=US))
