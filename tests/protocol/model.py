"""What every verb of the protocol must do to every run: the table of docs/architecture.md, a second time.

Without SQL and without time: a lease has expired, or it has not. `Real` has the same verbs, with the same arguments,
on the database; the answers compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.settings.policies import LostRuns

MAX_ATTEMPTS = 2
ENDED = ("succeeded", "failed", "cancelled")
QUEUED = ("claimed", "published")
LIVE = (*QUEUED, "running")


@dataclass(slots=True)
class Known:
    """What the model knows of one run: `status` is None when it is deleted, `state` when it has no row."""

    run_id: str
    has_slot: bool
    status: str | None = "pending"
    started: bool = False
    audit: list[str] = field(default_factory=lambda: ["run_created"])
    state: str | None = None
    outcome: str | None = None
    fence: int = 0
    """Claims so far."""
    attempts: int = 0
    """Begins, refunded ones too."""
    refunded: int = 0
    suspect: bool = False
    slot: str | None = None
    lapsed: bool | None = None
    status_aged: bool = False
    """Whether it is a week since the status changed."""
    row_aged: bool = False
    forgotten: bool = False
    """Whether its row was pruned, and the attempts with it. Its claims are counted all the same."""
    touched: int = 0
    """Rises with whatever may change the run or its row."""

    def enter(self, state: str, outcome: str | None = None) -> None:
        """Move the row to a state; a live one gets a lease."""
        self.state, self.outcome, self.lapsed = state, outcome, None if state == "settled" else False
        self.touched, self.row_aged = self.touched + 1, False
        self.slot = self.slot or ("held" if self.has_slot else "none")

    def skip(self) -> None:
        """Settle the row as what somebody else made of the run; its slot is due if that was an end."""
        self.enter("settled", "cancelled" if self.status == "cancelled" else "skipped")
        if self.status in (None, *ENDED):
            self.owe()

    def owe(self) -> None:
        """Make the slot due, once."""
        self.slot = "due" if self.slot == "held" else self.slot

    def move(self, status: str, action: str) -> None:
        """Change the run's status."""
        self.status = status
        self.audit.append(action)
        self.started = status == "running" or (self.started and status != "pending")
        self.touched, self.status_aged = self.touched + 1, False


class Model:
    """What every verb must do to every run, and answer."""

    def __init__(self, runs: Iterable[Known] = ()) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.locked: set[str] = set()
        """Runs that somebody else holds at this moment: statements pass over them."""
        self.committed: Model = self
        """What can be read meanwhile: the state before the act of whoever holds them."""

    def copy(self) -> Model:
        """Return another one that knows the same."""
        return Model(replace(run, audit=list(run.audit)) for run in self.runs.values())

    def create(self, run_id: str, has_slot: bool) -> None:
        self.runs[run_id] = Known(run_id, has_slot)

    def cancel(self, run_id: str) -> bool:
        run = self.runs[run_id]
        if run.status not in ("pending", "running"):
            return False
        run.move("cancelled", "run_cancelled")
        return True

    def delete(self, run_id: str) -> None:
        run = self.runs[run_id]
        run.status, run.touched = None, run.touched + 1

    def claimable(self) -> list[Known]:
        """Return the pending runs that nobody has claimed, oldest first."""
        return [run for run in self._free() if run.status == "pending" and run.state not in LIVE]

    def claim(self, dispatcher: int, room: int) -> list[Claim]:
        # Two keys are next, the workspace before what is outside of any; what one leaves the other gets.
        inside, outside = self.by_key()
        share = (room + 1) // 2
        first = min(len(inside), max(share, room - len(outside)))
        return self.take([*inside[:first], *outside[: room - first]])

    def by_key(self) -> tuple[list[Known], list[Known]]:
        """Return what is claimable in the workspace, and what is outside of any."""
        found = self.claimable()
        return [run for run in found if run.has_slot], [run for run in found if not run.has_slot]

    def take(self, runs: Sequence[Known]) -> list[Claim]:
        """Claim these runs."""
        for run in runs:
            run.fence += 1
            run.enter("claimed")
        return sorted(Claim(run.run_id, run.fence) for run in runs)

    def mark_published(self, claims: Sequence[Claim]) -> None:
        for run in self._held(claims, "claimed"):
            # Its lease stays as it is.
            run.state, run.touched = "published", run.touched + 1

    def release(self, claims: Sequence[Claim]) -> int:
        released = [run for run in self._held(claims, *QUEUED) if run.status]
        for run in released:
            if run.status == "pending":
                run.enter("settled", "released")
            else:
                run.skip()
        return len(released)

    def lapsed(self) -> list[Claim]:
        return sorted(Claim(run.run_id, run.fence) for run in self.runs.values() if run.state in QUEUED and run.lapsed)

    def extend(self, claims: Sequence[Claim]) -> None:
        for run in self._held(claims, *QUEUED):
            run.enter("published")

    def begin(self, worker: int, claim: Claim) -> tuple[str, bool | tuple[int, bool]]:
        if self._is_passed_over(claim, *QUEUED):
            return "locked", False
        for run in self._held([claim], *QUEUED):
            if run.status == "pending" and not run.has_slot:
                # Outside of any workspace: nobody may execute it.
                run.enter("settled", "cancelled")
                run.move("cancelled", "run_cancelled")
                return "workspace_missing", False
            if run.status == "pending":
                run.enter("running")
                run.attempts += 1
                run.move("running", "run_started")
                return "begun", (run.attempts - run.refunded, run.suspect)
            run.skip()
            return f"run is {run.status or 'gone'}", run.slot == "due"
        known = self.runs.get(claim.run_id)
        return "stale" if known is not None and known.state is not None else "unknown", False

    def heartbeat(self, claims: Sequence[Claim]) -> dict[Claim, str | None]:
        held = self._held(claims, "running")
        for run in held:
            run.enter("running")
        # What is passed over is held all the same: its lease is not renewed.
        held += [self.committed.runs[each.run_id] for each in claims if self._is_passed_over(each, "running")]
        return {Claim(run.run_id, run.fence): "running" if run.status == "running" else "ended" for run in held}

    def settle(self, claim: Claim, ending: Ending) -> tuple[str, bool, bool] | None:
        for run in self._held([claim], "running"):
            ended = run.status == "running"
            run.refunded += ending.refund
            run.suspect = ending.suspect or (run.suspect and ending.status == "pending")
            if ended:
                run.enter("settled", ending.outcome)
                run.move(ending.status, ending.action)
                if ending.status != "pending":
                    run.owe()
            else:
                run.skip()
            return str(run.outcome), ended, run.slot == "due"
        return None

    def lost(self, policy: LostRuns) -> list[Known]:
        """Return the runs to reap."""
        lost = [run for run in self._free() if run.state == "running" and run.lapsed and run.status]
        return [run for run in lost if policy is not LostRuns.HOLD or run.status != "running"]

    def reap(self, policy: LostRuns) -> list[tuple[Claim, str]]:
        lost = self.lost(policy)
        for run in lost:
            if run.status != "running":
                run.skip()
            elif policy.requeues and run.attempts - run.refunded < MAX_ATTEMPTS:
                run.enter("settled", "requeued")
                run.move("pending", "run_requeued")
            else:
                run.enter("settled", "lost")
                run.move("failed", "run_failed")
                run.owe()
        return sorted((Claim(run.run_id, run.fence), str(run.outcome)) for run in lost)

    def orphans(self) -> list[Known]:
        """Return the runs that are gone while somebody holds them."""
        return [run for run in self._free() if run.status is None and run.state in LIVE and run.lapsed]

    def reap_orphans(self) -> int:
        orphans = self.orphans()
        for run in orphans:
            run.skip()
        return len(orphans)

    def forsaken(self) -> list[Known]:
        """Return the runs that were cancelled while nobody had them: their slots are owed."""
        cancelled = [run for run in self._free() if run.status == "cancelled" and run.has_slot]
        forsaken = [run for run in cancelled if run.state is None or (run.state == "settled" and run.slot == "held")]
        return [run for run in forsaken if not run.started and not run.status_aged]

    def adopt_cancelled(self) -> int:
        adopted = self.forsaken()
        for run in adopted:
            run.enter("settled", "cancelled")
            run.owe()
        return len(adopted)

    def slots_due(self) -> list[str]:
        return sorted(run.run_id for run in self.runs.values() if run.slot == "due" and run.state == "settled")

    def slots_returned(self, run_ids: Sequence[str]) -> None:
        for run in (self.runs[run_id] for run_id in run_ids):
            if run.slot == "due" and run.run_id not in self.locked:
                run.slot, run.touched = "returned", run.touched + 1

    def prune(self) -> int:
        ended = [run for run in self._free() if run.state == "settled" and run.status in (None, *ENDED)]
        old = [run for run in ended if run.row_aged and run.slot != "due"]
        for run in old:
            run.state = run.outcome = run.slot = None
            run.attempts, run.refunded, run.suspect = 0, 0, False
            run.touched, run.forgotten = run.touched + 1, True
        return len(old)

    def repair(self, run_id: str, action: Action) -> tuple[str | None, str | None, str | None]:
        run = self.runs[run_id]
        before, requeue = run.status, action is Action.REQUEUE
        alive = run.state == "running" and not run.lapsed
        refused = None
        if before is None:
            refused = "there is no such run"
        elif requeue and before in ("pending", "succeeded"):
            refused = {"pending": "run is pending already", "succeeded": "run has succeeded"}[before]
        elif not requeue and before in ENDED:
            refused = f"run is {before}"
        elif alive and action is not Action.CANCEL:
            refused = "its worker is alive: cancel it first"
        if refused:
            return before, before, refused
        status = {Action.CANCEL: "cancelled", Action.FAIL: "failed", Action.REQUEUE: "pending"}[action]
        run.move(status, "run_requeued" if requeue else f"run_{status}")
        if not alive:
            run.enter("settled", "requeued" if requeue else status)
            if requeue:
                run.attempts = run.refunded = 0
            else:
                run.owe()
        return before, status, None

    def expire(self, run_ids: Sequence[str]) -> None:
        for run in (self.runs[run_id] for run_id in run_ids):
            if run.state in LIVE:
                run.lapsed, run.touched = True, run.touched + 1

    def age(self) -> None:
        self.expire(list(self.runs))
        for run in self.runs.values():
            run.status_aged, run.row_aged, run.touched = True, True, run.touched + 1

    def _free(self) -> list[Known]:
        return [run for run in self.runs.values() if run.run_id not in self.locked]

    def _is_passed_over(self, claim: Claim, *states: str) -> bool:
        """Return whether somebody holds this run, which is in one of these states under this fence."""
        run = self.committed.runs.get(claim.run_id)
        return claim.run_id in self.locked and run is not None and run.state in states and run.fence == claim.fence

    def _held(self, claims: Sequence[Claim], *states: str) -> list[Known]:
        free = [claim for claim in claims if claim.run_id not in self.locked]
        found = ((self.runs[claim.run_id], claim.fence) for claim in free)
        return [run for run, fence in found if run.fence == fence and run.state in states]
