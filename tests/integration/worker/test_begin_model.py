"""The statements of workers do what models in Python do, for thousands of runs in any combination of states."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.execute import BEGIN, ENDED_BY_API, HEARTBEAT, KNOWN, REFUSE
from tests.support.database.begin_model import Policies, Workflow, begin, ended_by_api, heartbeat, refuse
from tests.support.database.comparing import RolledBack, compare
from tests.support.database.run_states import OTHER, US, State, write
from tests.support.database.runs_at_random import at_random

_TABLES, _RUNS = 20, 60
_LEASE = 30
_STATES = ("claimed", "published", "claimed", "published", "running", "settled")
_WORKFLOWS = {
    "of a": Workflow("a"),
    "of all": Workflow(None),
    "of b": Workflow("b"),
    "archived": Workflow("a", archived=True),
    "archived, of all": Workflow(None, archived=True),
}
_GONE = "gone"
_INSERT_WORKFLOW = text("""
INSERT INTO workflows (id, handle, is_archived, payload, created_at, updated_at, workspace_id)
VALUES (:id, NULL, :archived, '{}', now(), now(), :owner)
""")
_POLICY = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, maintenance, paused, timeout_seconds)
VALUES (:workspace, :workflow, :maintenance, :paused, :timeout)
""")


@pytest.mark.parametrize("seed", range(4))
def test_begin_does_what_its_model_does(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        states = [_likely(random, state) for state in at_random(random, _RUNS, _STATES)]
        fences, messages = _messages(random, states)
        parameters = {**messages, "lease": _LEASE, "worker_id": US, "actor": US}
        with rolled_back() as connection:
            _insert_workflows(connection)
            policies = _decide(random, connection)

            model = partial(begin, fences=fences, workflows=_WORKFLOWS, policies=policies, lease=_LEASE)
            compare(connection, states, BEGIN, parameters, model)


def test_runs_that_are_known_are_those_with_a_row(rolled_back: RolledBack) -> None:
    states = at_random(Random(0), _RUNS)
    asked = [state.id for state in states[::2]] + ["no run"]
    with rolled_back() as connection:
        write(connection, states)
        found = {*connection.scalars(KNOWN, {"run_ids": asked})}
    assert found == {state.id for state in states if state.entry and state.id in asked}


@pytest.mark.parametrize("seed", range(2))
def test_refusal_does_what_its_model_does(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        states = [_likely(random, state) for state in at_random(random, _RUNS, _STATES)]
        fences, messages = _messages(random, states)
        errors = {(run_id, fence): f"{run_id} {fence}" for run_id in fences for fence in fences[run_id]}
        keys = zip(messages["run_ids"], messages["fences"], strict=True)
        parameters = {**messages, "errors": [errors[key] for key in keys], "worker_id": US, "actor": US}
        with rolled_back() as connection:
            compare(connection, states, REFUSE, parameters, partial(refuse, errors=errors))


@pytest.mark.parametrize("worker", [None, US, OTHER])
@pytest.mark.parametrize("seed", range(2))
def test_heartbeat_and_what_has_ended_are_those_of_the_model(
    rolled_back: RolledBack, worker: str | None, seed: int
) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        states = at_random(random, _RUNS, ("running", "running", "running", "published", "settled"))
        fences, messages = _messages(random, states)

        renewed = partial(heartbeat, fences=fences, worker=worker, lease=_LEASE)
        ended = partial(ended_by_api, fences=fences, worker=worker)
        with rolled_back() as connection:
            compare(connection, states, HEARTBEAT, {**messages, "worker_id": worker, "lease": _LEASE}, renewed)
        with rolled_back() as connection:
            compare(connection, states, ENDED_BY_API, {**messages, "worker_id": worker}, ended)


def _likely(random: Random, state: State) -> State:
    """Return it as a run of one of our workflows, often pending, so that many begin."""
    workflow = random.choice((*_WORKFLOWS, _GONE, "of a", "of a", "of all"))
    status = "pending" if state.status and random.random() < 0.6 else state.status
    workspace = "a" if random.random() < 0.6 else state.workspace
    named = state.named if random.random() < 0.4 else workspace
    return replace(state, status=status, workflow=workflow, workspace=workspace, named=named if status else None)


def _messages(random: Random, states: list[State]) -> tuple[dict[str, set[int]], dict[str, list[Any]]]:
    """Return messages for most runs, with the right fence, another, or one of each, and as parameters."""
    found: list[tuple[str, int]] = [("no run", 1)]
    for state in states:
        own = state.entry.fence if state.entry else 1
        found += [(state.id, fence) for fence in random.choice(((1,), (2,), (1, 2), (own,), ()))]
    random.shuffle(found)
    fences = defaultdict[str, set[int]](set)
    for run_id, fence in found:
        fences[run_id].add(fence)
    return fences, {"run_ids": [run_id for run_id, _ in found], "fences": [fence for _, fence in found]}


def _insert_workflows(connection: Connection) -> None:
    for name, workflow in _WORKFLOWS.items():
        connection.execute(_INSERT_WORKFLOW, {"id": name, "archived": workflow.archived, "owner": workflow.owner})


def _decide(random: Random, connection: Connection) -> Policies:
    """Set policies now and then."""
    if random.random() < 0.4:
        return Policies()
    scopes = ("workflow of a", "workflow of all", "workflow gone", "workspace a", "workspace b", "all")
    paused = {scope: random.random() < 0.6 for scope in scopes if random.random() < 0.3}
    timeouts = {scope: random.randint(1, 9) for scope in scopes if random.random() < 0.3}
    maintenance = random.choice((None, None, False, True))
    for scope in scopes:
        kind, _, name = scope.partition(" ")
        parameters = {
            "workspace": name if kind == "workspace" else "",
            "workflow": name if kind == "workflow" else "",
            "maintenance": maintenance if scope == "all" else None,
            "paused": paused.get(scope),
            "timeout": timeouts.get(scope),
        }
        connection.execute(_POLICY, parameters)
    return Policies(paused, timeouts, maintenance)
