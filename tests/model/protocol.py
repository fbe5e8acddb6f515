"""Every step that a process, an operator or a fault can take: the statements of `shared/ledger`, without SQL and time.

A statement is one step; between two steps anything may happen, so a process that is slow, paused or cut off needs no
step of its own. A lease expires at any moment. Faults (a crash, a flush, a message delivered twice, a cancel, a repair,
a restore) are bounded in number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model.rules import Rule
from tests.model.state import ENDED, LIVE, QUEUED, STEPS, Holder, Move, Row, State

TWICE = "a run begins twice under one fence"
REUSED = "a fence is used twice"
OVERWRITTEN = "an end is overwritten"
STALE = "a stale holder writes"
OVERLAP = "two workers execute a run whose lease has not expired"
REPEATED = "a finished step is executed again"
SLOTS = "a slot is returned twice"
DISAGREE = "the run and its row disagree"
TAKEN = "a claim is taken over before its lease expires"
STUCK = "a run never ends, or its slot is never returned"


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules in force, and the bounds."""

    dropped: frozenset[Rule] = field(default_factory=frozenset)
    fences: int = 3
    """Maximum number of claims. Once it is reached, it is not checked whether the run can still end."""
    faults: int = 2
    messages: int = 2
    processes: int = 2
    """Number of worker processes that the two holders belong to: 1 or 2."""
    restores: bool = False
    """Whether Postgres may be restored to an earlier state. The dump is not counted as a fault."""

    def start(self) -> State:
        """Return the state before everything: a pending run."""
        return State(faults=self.faults)

    def moves(self, state: State) -> Iterator[Move]:
        """Yield each step that is possible now."""
        for move in self._dispatchers(state):
            yield _checked(move)
        for index, holder in enumerate(state.holders):
            moves = self._take(state, index) if holder is None else self._worker(state, index, holder)
            for move in moves:
                yield _checked(move)
        if state.faults:
            for name, after in self._faults(state):
                yield _checked(Move(name, after._replace(faults=state.faults - 1)))
            if self.restores and state.dump is None:
                yield Move("Postgres is dumped", state._replace(dump=state.row))

    def done(self, state: State) -> bool:
        """Return whether nothing is left to do, or the bound of claims is reached."""
        row = state.row
        return state.high >= self.fences or (row.status in ENDED and row.state not in LIVE and row.slot == "returned")

    def _has(self, rule: Rule) -> bool:
        return rule not in self.dropped

    def _dispatchers(self, s: State) -> Iterator[Move]:
        row = s.row
        if row.status == "pending" and (row.state not in LIVE or not self._has(Rule.CLAIM_IS_FREE)):
            yield from self._claim(s)
        for fence in s.unpublished:
            out = _without(s.unpublished, fence)
            if len(s.queue) < self.messages:
                sent = s._replace(unpublished=out, queue=_with(s.queue, fence), unmarked=_with(s.unmarked, fence))
                yield Move(f"publish {fence}", sent)
            yield self._release(s._replace(unpublished=out), fence, "Redis is unavailable: release")
        for fence in s.unmarked:
            marked = row
            if row.fence == fence and (row.state == "claimed" or not self._has(Rule.MARK_IS_CLAIMED)):
                marked = row._replace(state="published")
            yield Move(f"mark {fence}", s._replace(unmarked=_without(s.unmarked, fence), row=marked))
        if row.state in LIVE and not row.lapsed:
            holders = tuple(
                each._replace(expired=True) if each and each.begun and each.fence == row.fence else each
                for each in s.holders
            )
            yield Move("the lease expires", s._replace(row=row._replace(lapsed=True), holders=holders))
        if row.state in QUEUED and row.lapsed:
            if row.fence in s.queue:
                yield Move("extend", s._replace(row=row._replace(state="published", lapsed=False)))
            elif self._has(Rule.RECONCILED) and row.fence not in s.judged:
                yield Move(f"find no message {row.fence}", s._replace(judged=_with(s.judged, row.fence)))
        for fence in s.judged:
            yield self._release(s._replace(judged=_without(s.judged, fence)), fence, "release")
        if row.state == "running" and (row.lapsed or not self._has(Rule.REAP_LEASE)) and self._has(Rule.REAPED):
            yield from self._reap(s)
        if row.state == "settled" and (row.slot == "due" or (row.slot == "returned" and not self._has(Rule.SLOT_ONCE))):
            yield Move("return the slot", s._replace(row=row._replace(slot="returned", returned=row.returned + 1)))
        if row.status == "cancelled" and row.slot == "held" and row.state not in LIVE and self._has(Rule.ADOPTED):
            yield Move("adopt", s._replace(row=row._replace(state="settled", slot="due")))
        if row.state == "settled" and row.status in ENDED and row.slot == "returned":
            yield Move("prune", s._replace(row=row._replace(state=None, fence=0, worker=None)))

    def _claim(self, s: State) -> Iterator[Move]:
        fence = s.high + 1 if self._has(Rule.FENCE_FROM_CLOCK) else s.row.fence + 1
        if not self._has(Rule.CLAIM_RAISES_FENCE):
            fence = max(1, s.row.fence)
        if fence <= self.fences:
            row = s.row._replace(state="claimed", fence=fence, worker=None, lapsed=False)
            after = s._replace(row=row, high=max(s.high, fence), unpublished=_with(s.unpublished, fence))
            taken = TAKEN if s.row.state in LIVE and not s.row.lapsed else None
            yield Move(f"claim {fence}", after, REUSED if fence <= s.high else taken)

    def _release(self, s: State, fence: int, name: str) -> Move:
        row, broken = s.row, None
        if (row.fence == fence or not self._has(Rule.RELEASE_FENCE)) and (
            row.state in QUEUED or not self._has(Rule.RELEASE_STATE)
        ):
            broken = None if row.fence == fence else STALE
            row = _settled(row)
        return Move(f"{name} {fence}", s._replace(row=row), broken)

    def _reap(self, s: State) -> Iterator[Move]:
        row = s.row
        if row.status == "running":
            yield Move("reap: requeue", s._replace(row=row._replace(status="pending", state="settled", lapsed=False)))
            yield Move("reap: fail", s._replace(row=_settled(row._replace(status="failed"))))
        else:
            yield Move("reap: settle", s._replace(row=_settled(row)))

    def _take(self, s: State, worker: int) -> Iterator[Move]:
        for fence in sorted(set(s.queue)):
            taken = _put(s, worker, Holder(fence))._replace(queue=_without(s.queue, fence))
            yield Move(f"worker {worker} takes message {fence}", taken)

    def _worker(self, s: State, worker: int, holder: Holder) -> Iterator[Move]:
        if not holder.begun:
            yield self._begin(s, worker, holder)
            return
        row, name = s.row, f"worker {worker} "
        holds = row.state == "running" and row.fence == holder.fence and row.worker == worker % self.processes
        if not holds:
            yield Move(name + "stops: its lease is lost", _put(s, worker, None))
        else:
            yield Move(name + "sends a heartbeat", s._replace(row=row._replace(lapsed=False)))
            handed = row._replace(status="pending", state="settled", lapsed=False)
            if row.status == "running":
                yield Move(name + "hands over", _put(s._replace(row=handed), worker, None))
        # As under LangGraph's durability "async": a step may begin while the one before it is being stored.
        if holder.done < STEPS and holder.done <= holder.saved + 1:
            broken = REPEATED if holds and holder.done < row.stored else None
            yield Move(
                f"{name}executes step {holder.done}", _put(s, worker, holder._replace(done=holder.done + 1)), broken
            )
        if holder.done > holder.saved:
            yield self._checkpoint(s, worker, holder, holds=holds)
        if holder.done == holder.saved == STEPS or row.status == "cancelled":
            yield self._settle(s, worker, holder, holds=holds)

    def _begin(self, s: State, worker: int, holder: Holder) -> Move:
        row, fence = s.row, holder.fence
        name = f"worker {worker} begins {fence}"
        refused = (row.fence != fence and self._has(Rule.BEGIN_FENCE)) or row.state is None
        if refused or (row.state not in QUEUED and self._has(Rule.BEGIN_STATE)):
            return Move(name + ": refused", _put(s, worker, None))
        if row.status != "pending" and self._has(Rule.BEGIN_STATUS):
            return Move(name + ": the run is not pending", _put(s._replace(row=_settled(row)), worker, None))
        others = [each for index, each in enumerate(s.holders) if index != worker and each and each.begun]
        broken = None
        if fence in row.begun:
            broken = TWICE
        elif row.fence != fence:
            broken = STALE
        elif row.status in ENDED:
            broken = OVERWRITTEN
        elif any(not each.expired for each in others):
            broken = OVERLAP
        began = row._replace(
            status="running",
            state="running",
            worker=worker % self.processes,
            lapsed=False,
            begun=_with(row.begun, fence),
        )
        done = row.stored if self._has(Rule.RESUME_READS) else 0
        return Move(name, _put(s._replace(row=began), worker, Holder(fence, begun=True, done=done, saved=done)), broken)

    def _checkpoint(self, s: State, worker: int, holder: Holder, *, holds: bool) -> Move:
        name = f"worker {worker} stores step {holder.saved}"
        if not holds and self._has(Rule.CHECKPOINT_HOLDER):
            return Move(name + ": refused, it stops", _put(s, worker, None))
        after = _put(s, worker, holder._replace(saved=holder.saved + 1))
        return Move(name, after._replace(row=s.row._replace(stored=holder.saved + 1)), None if holds else STALE)

    def _settle(self, s: State, worker: int, holder: Holder, *, holds: bool) -> Move:
        row, name = s.row, f"worker {worker} settles {holder.fence}"
        refused = (
            (row.state != "running" and self._has(Rule.SETTLE_STATE))
            or (row.fence != holder.fence and self._has(Rule.SETTLE_FENCE))
            or (row.worker != worker % self.processes and self._has(Rule.SETTLE_WORKER))
        )
        after = _put(s, worker, None)
        if refused:
            return Move(name + ": refused", after)
        broken = None if holds else STALE
        if row.status == "running" or not self._has(Rule.SETTLE_STATUS):
            broken = broken or (OVERWRITTEN if row.status in ENDED else None)
            row = row._replace(status="succeeded")
        return Move(name, after._replace(row=_settled(row)), broken)

    def _faults(self, s: State) -> Iterator[tuple[str, State]]:
        row = s.row
        for fence in s.unpublished:
            yield (
                f"crash of the dispatcher that has claimed {fence}",
                s._replace(unpublished=_without(s.unpublished, fence)),
            )
        for fence in s.unmarked:
            yield f"crash of the dispatcher that has sent {fence}", s._replace(unmarked=_without(s.unmarked, fence))
        for worker, holder in enumerate(s.holders):
            if holder:
                yield f"crash of worker {worker}", _put(s, worker, None)
        if s.queue:
            yield "flush of Redis", s._replace(queue=())
            if len(s.queue) < self.messages:
                for fence in set(s.queue):
                    yield f"message {fence} is delivered twice", s._replace(queue=_with(s.queue, fence))
        if row.status != "cancelled":
            # It reads, then writes, and does not look at what happened in between: also over an end.
            yield "the API cancels", s._replace(row=row._replace(status="cancelled"))
        alive = row.state == "running" and not row.lapsed
        if row.status in ("failed", "cancelled") and not (alive and self._has(Rule.REQUEUE_ALIVE)):
            again = row._replace(status="pending") if alive else row._replace(status="pending", state="settled")
            yield "an operator requeues", s._replace(row=again)
        if s.dump is not None and s.dump != row:
            # The restored row does not know of claims and begins since the dump, so their leases do not bind it.
            holders = tuple(each and each._replace(expired=True) for each in s.holders)
            yield "Postgres is restored", s._replace(row=s.dump, holders=holders)


def _checked(move: Move) -> Move:
    """Return the move, with the first property of its state that is broken."""
    row = move.state.row
    if move.broken:
        return move
    if row.returned > 1:
        return move._replace(broken=SLOTS)
    if (row.status == "running") > (row.state == "running") or (row.status == "pending" and row.state == "running"):
        return move._replace(broken=DISAGREE)
    return move


def _settled(row: Row) -> Row:
    """Return the row settled: if the run has ended, its slot is due, once."""
    slot = "due" if row.slot == "held" and row.status in ENDED else row.slot
    return row._replace(state="settled", lapsed=False, slot=slot)


def _put(state: State, worker: int, holder: Holder | None) -> State:
    holders = list(state.holders)
    holders[worker] = holder
    return state._replace(holders=tuple(holders))


def _with(fences: tuple[int, ...], fence: int) -> tuple[int, ...]:
    return tuple(sorted((*fences, fence)))


def _without(fences: tuple[int, ...], fence: int) -> tuple[int, ...]:
    found = list(fences)
    found.remove(fence)
    return tuple(found)
