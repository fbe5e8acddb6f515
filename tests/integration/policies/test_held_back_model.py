"""Why runs wait, and which policy a run has, is what models in Python say, for tables made at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.support.database.comparing import RolledBack
from tests.support.database.look_model import DEFAULT
from tests.support.database.policies_at_random import ALL, SCOPES, Policy, Scope, decide
from tests.support.database.rows import add_process, add_use
from tests.support.database.run_states import LIVE, WORKFLOWS, State, write
from tests.support.database.runs_at_random import at_random

_VIEW = text("""
SELECT h.run_id, h.claim, h.queue, h.reason, h.scope, EXTRACT(epoch FROM h.until - now())::integer AS left_for, h.used,
       h.allowed
  FROM orcheo_dispatch.held_back_runs AS h
""")
_POLICY_OF = text("SELECT orcheo_dispatch.policy_of(:workspace, :workflow)")


def _concerning(policies: dict[Scope, Policy], workspace: str | None, workflow: str) -> list[Policy]:
    """Return the policies of a run, the most specific first."""
    scopes = [("", workflow), *([(workspace, "")] if workspace else []), ALL]
    return [policies[scope] for scope in scopes if scope in policies]


def _first[T](policies: Sequence[Policy], told: Callable[[Policy], T | None]) -> tuple[T | None, Policy | None]:
    return next(((found, each) for each in policies if (found := told(each)) is not None), (None, None))


@dataclass(frozen=True)
class Tables:
    """What a run that waits depends on."""

    policies: dict[Scope, Policy]
    live: list[State]
    uses: list[tuple[Scope, int, int]]
    """Scope, claims, and seconds for which they count."""
    served: set[str]

    def running(self, policy: Policy) -> int:
        """Return how many runs count against its limit."""
        return sum(
            policy.workflow in ("", each.workflow) and policy.workspace in ("", each.workspace or "")
            for each in self.live
        )

    def claims(self, policy: Policy) -> tuple[int, int | None]:
        """Return how many claims count against its rate, and for how many seconds all of them do."""
        scope = policy.workspace, policy.workflow
        found = [(runs, left) for of, runs, left in self.uses if of == scope and left > 0]
        return sum(runs for runs, _ in found), min((left for _, left in found), default=None)

    def why(self, state: State) -> tuple[Any, ...]:
        """Return what the view says of a run."""
        policies = _concerning(self.policies, state.workspace, state.workflow)
        claim = state.entry.state if state.entry and state.entry.state in ("claimed", "published") else None
        queue, queued_by = _first(policies, lambda each: each.queue)
        paused, paused_by = _first(policies, lambda each: each.pauses)
        full = next((each for each in policies if each.max_running and self.running(each) >= each.max_running), None)
        spent = next((each for each in policies if each.rate_runs and self.claims(each)[0] >= each.rate_runs), None)
        to = state.id, claim, queue or "default"
        if ALL in self.policies and self.policies[ALL].maintenance:
            return *to, "maintenance", "all", None, None, None
        if paused and paused_by:
            return *to, "paused", paused_by.kind, paused_by.paused_for, None, None
        if to[2] not in self.served:
            return *to, "no_worker", queued_by and queued_by.kind, None, None, None
        if claim:
            return *to, "queued", None, None, None, None
        if full:
            return *to, "limit_reached", full.kind, None, self.running(full), full.max_running
        if spent:
            claims, left = self.claims(spent)
            return *to, "rate_used_up", spent.kind, left, claims, spent.rate_runs
        return *to, "in_turn", None, None, None, None


def _write(random: Random, connection: Connection) -> tuple[list[State], Tables]:
    states = at_random(random, 60)
    write(connection, states)
    policies = decide(random, connection)
    uses = {
        (scope, left): random.randint(1, 4)
        for scope in (*SCOPES, ("a", "w1"))
        for left in (-9, 9, 20, 40)
        if random.random() < 0.5
    }
    for (scope, left), runs in uses.items():
        add_use(connection, scope, runs, left=left)
    served = set()
    for kind, seen, queues in random.sample(_PROCESSES, random.randint(0, 4)):
        add_process(connection, kind, seen=seen, queues=queues)
        if kind == "worker" and seen < 30:
            served |= {*(["default"] if queues is None else queues)}
    live = [state for state in states if state.entry and state.entry.state in LIVE]
    return states, Tables(policies, live, [(scope, runs, left) for (scope, left), runs in uses.items()], served)


_PROCESSES: list[tuple[str, int, list[str] | None]] = [
    ("worker", 5, None),
    ("worker", 5, ["default"]),
    ("worker", 5, ["gpu"]),
    ("worker", 60, ["gpu", "default"]),
    ("dispatcher", 5, ["gpu", "default", "none"]),
]


@pytest.mark.parametrize("part", range(8))
def test_runs_wait_for_the_reasons_of_the_model(rolled_back: RolledBack, part: int) -> None:
    reasons: Counter[str] = Counter()
    for seed in range(40):
        with rolled_back() as connection:
            states, tables = _write(Random(f"{part} {seed}"), connection)
            found = {row.run_id: tuple(row) for row in connection.execute(_VIEW)}
        expected = {state.id: tables.why(state) for state in states if DEFAULT.pending(state)}
        assert found == expected, seed
        reasons.update(why[3] for why in expected.values())
    assert len(reasons) == 7


@pytest.mark.parametrize("part", range(2))
def test_policy_of_a_run_is_that_of_the_model(rolled_back: RolledBack, part: int) -> None:
    for seed in range(40):
        with rolled_back() as connection:
            policies = decide(Random(f"{part} {seed}"), connection)
            for workspace in (None, "", "a", "b", "c"):
                for workflow in (*WORKFLOWS, "w3"):
                    found = connection.scalar(_POLICY_OF, {"workspace": workspace, "workflow": workflow})
                    assert found == _policy_of(policies, workspace, workflow), (seed, workspace, workflow)


def _policy_of(policies: dict[Scope, Policy], workspace: str | None, workflow: str) -> dict[str, Any] | None:
    concerning = _concerning(policies, workspace, workflow)
    of_all = policies.get(ALL)
    paused, _ = _first(concerning, lambda each: each.pauses)
    queue, _ = _first(concerning, lambda each: each.queue)
    found: dict[str, Any] = {
        "held": "maintenance" if of_all and of_all.maintenance else "paused" if paused else None,
        "queue": None if queue == "default" else queue,
        "timeout": _first(concerning, lambda each: each.timeout)[0],
        "lost_runs": _first(concerning, lambda each: each.lost_runs)[0],
        "retries": _first(concerning, lambda each: each.retries)[0],
        "isolation": _first(concerning, lambda each: each.isolation)[0],
    }
    return {name: value for name, value in found.items() if value is not None} or None
