"""Claim, begin, reap and settle in any order, with any fault between: the database does what the model says, no more.

Two dispatchers and three workers take their steps one after the other, or two of them at once. Redis loses, repeats
and delays messages; processes die between any two steps; leases run out; the API and an operator interfere. After every
step all runs and rows are compared with the model, and with rules that hold whatever the model says. At the end
everybody behaves, and one poll must leave nothing that waits, runs or is owed.

The suite tries the same examples each time. Others, and more of them:

    TEST_PROTOCOL_EXAMPLES=5000 pytest --timeout=0 tests/integration/recovery/test_protocol.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from orcheo_dispatch.shared.ledger.model import Claim, Outcome
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.protocol.machine import (
    DISPATCHERS,
    MAX_RUNS,
    REFUNDED,
    REQUEUED,
    SUCCEEDED,
    WORKERS,
    Act,
    Dispatcher,
    Machine,
    ground,
)
from tests.protocol.model import ENDED, LIVE, MAX_ATTEMPTS
from tests.support.database.databases import Database

REPAIRS = (Action.CANCEL, Action.FAIL, Action.REQUEUE)
OPEN = ("pending", "running")
LOST = Ending.failed("Worker stopped.", reason="drained", outcome=Outcome.LOST)
ENDINGS = [
    SUCCEEDED,
    Ending.failed("no", reason="ValueError"),
    Ending.failed("too long", reason="timed_out", outcome=Outcome.TIMED_OUT),
    Ending.cancelled("Workflow is archived."),
    LOST,
    REQUEUED,
    REFUNDED,
]


def where(condition: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Leave a rule out while there is nothing for it to do."""
    return precondition(lambda machine: bool(condition(machine)))


def among(choices: Callable[[Any], Any]) -> st.SearchStrategy[Any]:
    """Draw from what there is at this moment."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choices(machine)))


def two_acts(first: Callable[[Any, str], list[Act]]) -> st.SearchStrategy[tuple[Act, Act]]:
    """Draw two acts upon one run."""
    runs = among(lambda self: self.runs(state=LIVE) + list(self.model.runs))
    firsts = runs.flatmap(lambda run: st.tuples(st.just(run), among(lambda self: first(self, run))))
    return firsts.flatmap(lambda f: st.tuples(st.just(f[1]), among(lambda self: self.acts(f[0], after=f[1]))))


dispatchers = st.sampled_from(DISPATCHERS)
workers = st.sampled_from(WORKERS)
POLL = ("reap", "look", "reconcile", "maintain", "claim", "publish", "note")
rooms = st.integers(1, MAX_RUNS)
policies = st.sampled_from(LostRuns)
# What leads furthest, twice as often.
pasts = st.sampled_from(["none", "worker lost", "worker lost", "message lost", "failed"])
stages = st.sampled_from(["begin", "begin", "note", "claim", "pending"])
histories = st.lists(st.tuples(st.booleans(), pasts, stages), min_size=1, max_size=3)


class Protocol(Machine):
    """What may happen."""

    @initialize(policy=policies, runs=histories)
    def runs_are_under_way(self, policy: LostRuns, runs: list[tuple[bool, str, str]]) -> None:
        self.policy = policy
        for number, (has_slot, past, stage) in enumerate(runs):
            self.api_creates_run(has_slot)
            # Outside of any workspace no run begins.
            self._has_a_past(str(UUID(int=number + 1)), number, past if has_slot else "none")
            if stage in POLL:
                self.dispatcher_polls(0, MAX_RUNS, stage)
            if stage == "begin":
                self.dispatcher_polls(0, MAX_RUNS, "note")
                self.worker_takes_messages((number + 1) % len(WORKERS), MAX_RUNS)

    def _has_a_past(self, run: str, number: int, past: str) -> None:
        """Have somebody hold the run who has lost it, and does not know."""
        if past == "none":
            return
        self.dispatcher_polls(0, MAX_RUNS, "claim")
        if past != "message lost":
            self.dispatcher_publishes(0)
            self.worker_takes_messages(number, MAX_RUNS)
        if past == "failed":
            self.worker_settles((number, self.held[number][-1]), LOST)
            self.dispatcher_polls(1, MAX_RUNS, "maintain")
        else:
            self.lease_runs_out(run)
            self.dispatcher_polls(1, MAX_RUNS, "reconcile")
        if self.model.runs[run].status != "pending":
            self.operator_repairs(run, Action.REQUEUE)

    # The API, and the operator.

    @where(lambda self: len(self.model.runs) < MAX_RUNS)
    @rule(has_slot=st.booleans())
    def api_creates_run(self, has_slot: bool) -> None:
        self.do("create", str(UUID(int=len(self.model.runs) + 1)), has_slot)

    @where(lambda self: self.runs(status=OPEN))
    @rule(run=among(lambda self: self.runs(status=OPEN)), verb=st.sampled_from(["cancel", "delete"]))
    def api_ends_run(self, run: str, verb: str) -> None:
        self.do(verb, run)

    @where(lambda self: self.repairable)
    @rule(run=among(lambda self: self.repairable), action=st.sampled_from(REPAIRS))
    def operator_repairs(self, run: str, action: Action) -> None:
        self.do("repair", run, action)

    # Dispatchers.

    @where(lambda self: self.due())
    @rule(dispatcher=dispatchers, room=rooms, until=st.sampled_from(POLL[::-1]))
    def dispatcher_polls(self, dispatcher: int, room: int, until: str) -> None:
        """Until it dies, or is paused: the rules below go on where it stopped, early or late."""
        for step in POLL[: POLL.index(until) + 1]:
            match step:
                case "reap":
                    self.do("reap", self.policy, by=dispatcher)
                case "look":
                    self.dispatchers[dispatcher].lapsed = self.do("lapsed", by=dispatcher)
                case "reconcile":
                    self.dispatcher_reconciles(dispatcher)
                case "maintain":
                    self.do("reap_orphans", by=dispatcher)
                    self.do("adopt_cancelled", by=dispatcher)
                    self.do("slots_returned", self.do("slots_due", by=dispatcher), by=dispatcher)
                case "claim":
                    self.do("claim", dispatcher, room, by=dispatcher)
                case "publish":
                    self.dispatcher_publishes(dispatcher)
                case "note":
                    self.dispatcher_notes_what_it_published(dispatcher)

    @where(lambda self: sorted(map(bool, self.model.by_key())) == [False, True] and len(self.model.claimable()) > 1)
    @rule(slow_room=rooms, fast_room=rooms)
    def two_dispatchers_claim_at_once(self, slow_room: int, fast_room: int) -> None:
        self.claim_at_once(slow_room, fast_room)

    @where(lambda self: self.with_some("unsent"))
    @rule(dispatcher=among(lambda self: self.with_some("unsent")))
    def dispatcher_publishes(self, dispatcher: int) -> None:
        it = self.dispatchers[dispatcher]
        self.redis += it.unsent
        self.sent += it.unsent
        it.unnoted, it.unsent = it.unnoted + it.unsent, []

    @where(lambda self: self.with_some("unnoted"))
    @rule(dispatcher=among(lambda self: self.with_some("unnoted")))
    def dispatcher_notes_what_it_published(self, dispatcher: int) -> None:
        self.do("mark_published", self.dispatchers[dispatcher].unnoted, by=dispatcher)
        self.dispatchers[dispatcher].unnoted = []

    @where(lambda self: self.with_some("unsent"))
    @rule(dispatcher=among(lambda self: self.with_some("unsent")))
    def dispatcher_finds_redis_away(self, dispatcher: int) -> None:
        self.do("release", self.dispatchers[dispatcher].unsent, by=dispatcher)
        self.dispatchers[dispatcher].unsent = []

    @where(lambda self: self.with_some("unsent", "unnoted", "lapsed"))
    @rule(dispatcher=among(lambda self: self.with_some("unsent", "unnoted", "lapsed")))
    def dispatcher_dies(self, dispatcher: int) -> None:
        self.dispatchers[dispatcher] = Dispatcher()

    @where(lambda self: self.with_some("lapsed"))
    @rule(dispatcher=among(lambda self: self.with_some("lapsed")))
    def dispatcher_reconciles(self, dispatcher: int) -> None:
        lapsed = self.dispatchers[dispatcher].lapsed
        self.do("extend", [claim for claim in lapsed if claim in self.redis], by=dispatcher)
        self.do("release", [claim for claim in lapsed if claim not in self.redis], by=dispatcher)
        self.dispatchers[dispatcher].lapsed = []

    # Redis.

    @where(lambda self: self.redis)
    @rule(message=among(lambda self: self.redis))
    def message_is_lost(self, message: Claim) -> None:
        self.redis.remove(message)

    @where(lambda self: self.redis)
    @rule()
    def redis_is_flushed(self) -> None:
        self.redis = []

    @where(lambda self: self.sent)
    @rule(worker=workers, message=among(lambda self: self.sent))
    def message_comes_again(self, worker: int, message: Claim) -> None:
        self.do("begin", worker, message)

    # Workers.

    @where(lambda self: self.redis)
    @rule(worker=workers, messages=rooms)
    def worker_takes_messages(self, worker: int, messages: int) -> None:
        taken, self.redis = self.redis[:messages], self.redis[messages:]
        for message in taken:
            self.do("begin", worker, message)

    @where(lambda self: self.busy)
    @rule(worker=among(lambda self: self.busy))
    def worker_beats(self, worker: int) -> None:
        held = self.do("heartbeat", self.held[worker])
        self.held[worker] = [claim for claim in self.held[worker] if claim in held]

    @where(lambda self: self.executing)
    @rule(which=among(lambda self: self.executing), ending=st.sampled_from(ENDINGS))
    def worker_settles(self, which: tuple[int, Claim], ending: Ending) -> None:
        worker, claim = which
        self.do("settle", claim, ending)
        self.held[worker].remove(claim)

    @where(lambda self: self.executing)
    @rule(which=among(lambda self: self.executing), ending=st.sampled_from([None, *ENDINGS]), first=st.booleans())
    def worker_settles_or_beats_while_it_is_reaped(
        self, which: tuple[int, Claim], ending: Ending | None, first: bool
    ) -> None:
        worker, claim = which
        self.do("expire", [claim.run_id])
        act: Act = ("settle", claim, ending) if ending else ("heartbeat", [claim])
        reap: Act = ("reap", self.policy)
        answers = self.do_at_once(act, reap) if first else self.do_at_once(reap, act)[::-1]
        if ending:
            # A beat that passes over a row which is being reaped learns of it the next time.
            assert not answers[0] or claim not in dict(answers[1]), "one of them wins"
        if ending or not answers[0]:
            self.held[worker].remove(claim)

    @where(lambda self: self.busy)
    @rule(worker=among(lambda self: self.busy))
    def worker_drains(self, worker: int) -> None:
        for claim in self.held[worker]:
            run = self.model.runs[claim.run_id]
            again = self.policy.requeues and run.attempts - run.refunded < MAX_ATTEMPTS
            if self.policy is not LostRuns.HOLD:
                self.do("settle", claim, REQUEUED if again else LOST)
        self.held[worker] = []

    @where(lambda self: self.busy)
    @rule(worker=among(lambda self: self.busy))
    def worker_is_killed(self, worker: int) -> None:
        self.held[worker] = []

    # Time.

    @where(lambda self: self.leased)
    @rule(run=among(lambda self: self.leased))
    def lease_runs_out(self, run: str) -> None:
        """Its holder is dead, or only paused: then it comes back and goes on as if nothing had been."""
        self.do("expire", [run])

    @where(lambda self: self.prunable)
    @rule()
    def week_passes(self) -> None:
        self.do("age")
        self.do("prune")

    # Two at once.

    @where(lambda self: self.model.runs)
    @rule(acts=two_acts(lambda self, run: self.acts(run)))
    def two_act_at_once(self, acts: tuple[Act, Act]) -> None:
        self.do_at_once(*acts)

    @where(lambda self: set(self.runs(status=OPEN)) & set(self.runs(state=LIVE)))
    @rule(acts=two_acts(lambda self, run: [("cancel", run)]))
    def api_cancels_run_while_another_acts(self, acts: tuple[Act, Act]) -> None:
        self.do_at_once(*acts)

    def acts(self, run: str, *, after: Act | None = None) -> list[Act]:
        """Return what may be done to a run at this moment, by the holders of its last two fences too."""
        claimed = [claim for claim in self.claimed if claim.run_id == run][-2:]
        begun = [claim for claim in claimed if claim in self.begun]
        acts: list[Act] = [
            *(("begin", int(after is not None), claim) for claim in claimed if claim in self.sent),
            *((verb, [claim]) for verb in ("mark_published", "extend", "release") for claim in claimed),
            *(("heartbeat", [claim]) for claim in begun),
            *(("settle", claim, ending) for claim in begun for ending in (SUCCEEDED, REQUEUED, REFUNDED)),
            ("reap", self.policy),
            ("reap_orphans",),
            ("claim", int(after is not None), MAX_RUNS),
            ("delete", run),
        ]
        # The API reads, and writes later without a condition: Orcheo's own gap. So it cancels first, never second.
        # A repair does not see a worker that begins or beats while it waits for the run.
        unseen = after is not None and after[0] in ("begin", "heartbeat")
        return acts + [("repair", run, action) for action in REPAIRS if run in self.repairable and not unseen]

    # What there is to draw from.

    @property
    def repairable(self) -> list[str]:
        return [run.run_id for run in self.model.runs.values() if run.status not in (None, "succeeded")]

    @property
    def prunable(self) -> list[str]:
        runs = self.model.runs.values()
        return [run.run_id for run in runs if run.status in ENDED and run.state == "settled" and run.slot != "due"]

    @property
    def leased(self) -> list[str]:
        return [run.run_id for run in self.model.runs.values() if run.lapsed is False]

    @property
    def busy(self) -> list[int]:
        return [worker for worker in WORKERS if self.held[worker]]

    @property
    def executing(self) -> list[tuple[int, Claim]]:
        return [(worker, claim) for worker in WORKERS for claim in self.held[worker]]

    def due(self) -> bool:
        """Return whether a poll would do anything."""
        model = self.model
        work = (model.claimable(), model.lapsed(), model.lost(self.policy), model.orphans(), model.forsaken())
        return any(work) or bool(model.slots_due())

    def with_some(self, *names: str) -> list[int]:
        """Return the dispatchers with any of these in memory."""
        return [number for number in DISPATCHERS if any(getattr(self.dispatchers[number], name) for name in names)]


@pytest.mark.timeout(900)
def test_protocol_keeps_its_rules(database: Database) -> None:
    """The timeout leaves time to shrink: a failure shows the shortest way there."""
    examples = os.environ.get("TEST_PROTOCOL_EXAMPLES")
    how = settings(
        max_examples=int(examples or 60),
        stateful_step_count=40,
        derandomize=not examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with ground(database) as shared:
        run_state_machine_as_test(lambda: Protocol(shared), settings=how)  # type: ignore[arg-type]
