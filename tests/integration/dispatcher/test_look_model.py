"""What a poll finds to do, and which runs it admits, is what models in Python say, for tables made at random."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.model import TURNS_INDEX
from orcheo_dispatch.shared.ledger.statements.admit import ADMIT_LABELLED, ADMIT_PUSHED
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_GIVEN
from orcheo_dispatch.shared.ledger.statements.look import LOOK, QUEUED, WRITE_NOTHING
from tests.support.database.comparing import RolledBack, compare
from tests.support.database.look_model import Kinds, Ours, admit_labelled, admit_pushed, claim_given, look
from tests.support.database.run_states import US, WORKFLOWS, WORKSPACES, State, write
from tests.support.database.runs_at_random import at_random, which_at_random

_POLICY = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, maintenance, max_running, rate_runs, rate_seconds, queue)
VALUES (:workspace, '', :maintenance, :max_running, :rate_runs, CASE WHEN :rate_runs > 0 THEN 60 END, :queue)
""")
_QUEUE = text("INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, queue) VALUES ('', :workflow, :queue)")
# Fences grow with the time in milliseconds; the lowest ten bits count the claims of a run.
_LEAST_FENCE = text("SELECT (EXTRACT(epoch FROM now()) * 1000)::bigint << 10")


@pytest.mark.parametrize("seed", range(3))
def test_look_finds_what_the_model_finds(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(100):
        states = [_likely(random, each) for each in at_random(random, random.choice((0, 1, 1, 2, 3, 10)))]
        ours, index = _ours(random), random.choice((TURNS_INDEX, "workflow_runs"))
        with rolled_back() as connection:
            write(connection, states)
            kinds = _decide(random, connection)
            parameters = {**vars(ours), "index": index}
            found = dict(connection.execute(LOOK, parameters).mappings().one())
            assert found.pop("at") > 0
            assert found.pop("in_turn") is (index == TURNS_INDEX)
            assert found == look(states, ours, kinds)
            assert connection.execute(WRITE_NOTHING).rowcount == 0
            assert connection.scalar(QUEUED) == look(states, ours, Kinds(named_queues=True))["queued"]


@pytest.mark.parametrize("seed", range(2))
def test_pushed_runs_are_admitted_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(20):
        states, ours = at_random(random, 60), _ours(random)
        named = {state.id: random.choice((state.workspace, state.workspace, *WORKSPACES)) for state in states}
        parameters = {**vars(ours), "run_ids": [*named], "workspace_ids": [*named.values()], "dispatcher_id": US}
        with rolled_back() as connection:
            compare(connection, states, ADMIT_PUSHED, parameters, partial(admit_pushed, workspaces=named, ours=ours))


@pytest.mark.parametrize("seed", range(3))
def test_runs_whose_push_was_lost_are_admitted_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(20):
        states, ours = [_likely(random, each) for each in at_random(random, 100)], _ours(random)
        which, older_than = which_at_random(random, states), random.choice((1, 20, 100))
        parameters = {**vars(ours), **which.parameters, "older_than": older_than, "dispatcher_id": US}
        model = partial(admit_labelled, ours=ours, older_than=older_than, which=which)
        with rolled_back() as connection:
            compare(connection, states, ADMIT_LABELLED, parameters, model)


@pytest.mark.parametrize("seed", range(3))
def test_given_runs_are_claimed_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(20):
        states = at_random(random, 60)
        run_ids = [state.id for state in states if random.random() < 0.8]
        queues = {workflow: random.choice(("gpu", "default")) for workflow in WORKFLOWS if random.random() < 0.5}
        with rolled_back() as connection:
            least: int = connection.scalar(_LEAST_FENCE)
            for workflow, queue in queues.items():
                connection.execute(_QUEUE, {"workflow": workflow, "queue": queue})
            model = partial(claim_given, run_ids=run_ids, queues=queues, least=least, lease=30)
            parameters = {"run_ids": run_ids, "lease": 30, "dispatcher_id": US}
            compare(connection, states, CLAIM_GIVEN, parameters, model)


@pytest.mark.parametrize("right_first", [True, False])
def test_run_that_is_pushed_twice_is_admitted_by_the_push_with_its_workspace(
    rolled_back: RolledBack, right_first: bool
) -> None:
    run = State("r", "pending", label="other", workspace="a", audit=("api run_created {}",))
    pushes = [("a", True, False), ("b", False, True)]
    pushes = pushes if right_first else pushes[::-1]
    parameters = {**vars(Ours(["webhook"], every_trigger=False)), "run_ids": ["r", "r"], "dispatcher_id": US}
    parameters["workspace_ids"] = [workspace for workspace, _, _ in pushes]
    with rolled_back() as connection:
        write(connection, [run])
        rows = connection.execute(ADMIT_PUSHED, parameters)
        found = {(row.workspace_id, row.admitted, row.refused) for row in rows}
    assert found == {*pushes}


def _likely(random: Random, state: State) -> State:
    """Return it as a pending run that dispatchers do not know, often enough."""
    if state.status is None or random.random() < 0.4:
        return state
    return replace(state, status="pending", label="other", entry=None, retry=None, question=None)


def _ours(random: Random) -> Ours:
    return Ours(random.choice((["webhook"], ["other"], ["webhook", "other"], [])), random.random() < 0.3)


def _decide(random: Random, connection: Connection) -> Kinds:
    """Set policies of any kinds, of all runs and of a workspace."""

    def maybe[T](value: T) -> T | None:
        return value if random.random() < 0.25 else None

    limits, rates, queues, maintenance = [], [], [], None
    for workspace in ("", "a"):
        of_all = workspace == ""
        limit, rate, queue = maybe(3), maybe(5), maybe("gpu")
        if of_all:
            maintenance = random.choice((None, None, False, True))
        parameters: dict[str, Any] = {"workspace": workspace, "maintenance": maintenance if of_all else None}
        if random.random() < 0.6 or maintenance is not None:
            parameters |= {"max_running": limit, "rate_runs": rate, "queue": queue}
            connection.execute(_POLICY, parameters)
            limits.append(limit)
            rates.append(rate)
            queues.append(queue)
    # A policy of a workflow says nothing of maintenance.
    connection.execute(_QUEUE, {"workflow": "w1", "queue": maybe("gpu")})
    queues += [*connection.scalars(text("SELECT p.queue FROM orcheo_dispatch.policy AS p WHERE p.workflow_id = 'w1'"))]
    return Kinds(any(limits), any(rates), any(queues), maintenance)
