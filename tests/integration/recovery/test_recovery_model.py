"""The statements that recover runs do what models in Python do, for thousands of runs in any combination of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, TextClause, text

from orcheo_dispatch.shared.ledger.statements.recover import (
    ADOPT_CANCELLED,
    CLOSE_TRACES,
    COUNT_ENDED,
    FORGET_QUESTIONS,
    PRUNE,
    PRUNE_ENDED,
    REAP_ORPHANS,
    RETRY,
    SLOTS_DUE,
    SLOTS_RETURNED,
)
from tests.support.database.comparing import RolledBack, Row, compare
from tests.support.database.recovery_model import (
    Rules,
    adopt_cancelled,
    close_trace,
    forget_question,
    prune,
    reap_orphan,
    retry,
    return_slot,
    slot_due,
)
from tests.support.database.run_states import OUTCOMES, US, WORKFLOWS, Entry, State, write
from tests.support.database.runs_at_random import at_random, which_at_random

_TABLES, _RUNS = 20, 60
_SECONDS = (1, 20, 100, 1000)
_POLICY = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, retries) VALUES (:workspace, :workflow, :retries)
""")
_ENDED = text("INSERT INTO orcheo_dispatch.ended (minute, outcome, runs) VALUES (:minute, :outcome, :runs)")

type Model = Callable[[State], tuple[Row, State | None]]
type Made = tuple[TextClause, dict[str, Any], Model]


def _some(random: Random, states: list[State]) -> list[str]:
    return [state.id for state in states if random.random() < 0.7]


def _forgetting(random: Random, states: list[State]) -> Made:
    which = which_at_random(random, states)
    return FORGET_QUESTIONS, which.parameters, partial(forget_question, which=which)


def _orphans(random: Random, states: list[State]) -> Made:
    which = which_at_random(random, states)
    return REAP_ORPHANS, which.parameters, partial(reap_orphan, which=which)


def _adopting(random: Random, states: list[State]) -> Made:
    which = which_at_random(random, states)
    terms: dict[str, Any] = {"every_trigger": random.random() < 0.4, "younger_than": random.choice(_SECONDS)}
    terms["triggers"] = ["webhook"]
    parameters = {**which.parameters, **terms, "dispatcher_id": US}
    return ADOPT_CANCELLED, parameters, partial(adopt_cancelled, which=which, **terms)


def _pruning(random: Random, states: list[State]) -> Made:
    which, retention = which_at_random(random, states), random.choice(_SECONDS)
    return PRUNE, {**which.parameters, "retention": retention}, partial(prune, which=which, retention=retention)


def _closing(random: Random, states: list[State]) -> Made:
    run_ids = _some(random, states)
    return CLOSE_TRACES, {"run_ids": run_ids}, partial(close_trace, run_ids=run_ids)


def _due(random: Random, states: list[State]) -> Made:
    skipped, older_than = random.choice(((), _some(random, states))), random.choice(_SECONDS)
    parameters = {"skipped": [*skipped], "older_than": older_than, "batch": 1000}
    return SLOTS_DUE, parameters, partial(slot_due, older_than=older_than, skipped=skipped)


def _returning(random: Random, states: list[State]) -> Made:
    run_ids = _some(random, states)
    return SLOTS_RETURNED, {"run_ids": run_ids}, partial(return_slot, run_ids=run_ids)


@pytest.mark.parametrize("make", [_forgetting, _orphans, _adopting, _pruning, _closing, _due, _returning])
@pytest.mark.parametrize("seed", range(2))
def test_statement_does_what_its_model_does(
    rolled_back: RolledBack, make: Callable[[Random, list[State]], Made], seed: int
) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        # Often of the status that most of these statements look for.
        statuses = random.choice((None, "cancelled", "failed"))
        states = [
            replace(state, status=statuses) if statuses and state.status and random.random() < 0.5 else state
            for state in at_random(random, _RUNS)
        ]
        statement, parameters, model = make(random, states)
        with rolled_back() as connection:
            compare(connection, states, statement, parameters, model)


@pytest.mark.parametrize("seed", range(3))
def test_retry_does_what_its_model_does(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        states = at_random(random, _RUNS)
        which, from_start = which_at_random(random, states), random.random() < 0.5
        parameters = {**which.parameters, "from_start": from_start, "actor": US}
        with rolled_back() as connection:
            rules = _decide(random, connection)
            model = partial(retry, which=which, rules=rules, from_start=from_start)
            compare(connection, states, RETRY, parameters, model)


def _decide(random: Random, connection: Connection) -> Rules:
    """Set policies of retries now and then; the one of a workspace without a name must not count."""

    def some(scopes: tuple[str, ...]) -> dict[str, str]:
        return {each: random.choice(("step", "start", "off")) for each in scopes if random.random() < 0.4}

    if random.random() < 0.3:
        return Rules()
    rules = Rules(some(WORKFLOWS), some(("a", "b")), some(("all",)).get("all"))
    scopes = {("", name): rule for name, rule in rules.by_workflow.items()}
    scopes |= {(name, ""): rule for name, rule in rules.by_workspace.items()}
    if rules.of_all:
        scopes["", ""] = rules.of_all
    for (workspace, workflow), rule in scopes.items():
        connection.execute(_POLICY, {"workspace": workspace, "workflow": workflow, "retries": rule})
    return rules


@pytest.mark.parametrize("seed", range(40))
def test_minutes_are_counted_as_the_model_counts_them(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    ages = random.choice(((300,), (300, 4000), (4000, 30000)))
    states = [
        State(f"r{n}", None, entry=Entry("settled", random.choice(OUTCOMES[:3]), settled=random.randint(0, max(ages))))
        for n in range(random.choice((0, 1, 60)))
    ]
    states.append(State("live", None, entry=Entry("claimed", lease=5)))
    with rolled_back() as connection:
        now: datetime = connection.scalar(text("SELECT now()"))
        this_minute = now.replace(second=0, microsecond=0)
        counted = this_minute - timedelta(minutes=random.randint(1, 60)) if random.random() < 0.5 else None
        if counted:
            connection.execute(_ENDED, {"minute": counted, "outcome": "lost", "runs": 7})
        write(connection, states)
        connection.execute(COUNT_ENDED)
        found = {(row[0], row[1]): row[2] for row in connection.execute(text("SELECT * FROM orcheo_dispatch.ended"))}
    assert found == _minutes(states, now, counted)


def test_minutes_are_kept_for_as_long_as_dashboards_show_them(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        now: datetime = connection.scalar(text("SELECT now()"))
        minutes = [now - timedelta(days=days) for days in (1, 30, 32, 400)]
        for minute in minutes:
            connection.execute(_ENDED, {"minute": minute, "outcome": "lost", "runs": 7})
        connection.execute(PRUNE_ENDED)
        left = connection.scalars(text("SELECT e.minute FROM orcheo_dispatch.ended AS e ORDER BY e.minute DESC"))
        assert left.all() == minutes[:2]


def _minutes(states: list[State], now: datetime, counted: datetime | None) -> dict[tuple[datetime, str], int]:
    """Return the rows of minutes, where all up to `counted` were counted before."""
    ends = [
        (now - timedelta(seconds=state.entry.settled), state.entry.outcome)
        for state in states
        if state.entry and state.entry.settled is not None
    ]
    ends = [(at, outcome) for at, outcome in ends if counted is None or at >= counted + timedelta(minutes=1)]
    expected = {(counted, "lost"): 7} if counted else {}
    if ends:
        since = min(at for at, _ in ends).replace(second=0, microsecond=0)
        final = now.replace(second=0, microsecond=0) - timedelta(minutes=2)
        until = min(since + timedelta(hours=6), final)
        expected |= Counter((at.replace(second=0, microsecond=0), str(outcome)) for at, outcome in ends if at < until)
    return expected
