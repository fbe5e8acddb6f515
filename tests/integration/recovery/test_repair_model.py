"""The statements of operators choose and do what models in Python do, for thousands of runs in any states."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.repair import (
    ANSWER,
    AWAIT_RUN,
    CHOOSE_RUNS,
    COUNT_RUNS,
    EXISTING_RUNS,
    LOCK_RUNS,
    REPAIR,
)
from tests.support.database.comparing import RolledBack, compare
from tests.support.database.repair_model import Wanted, answer, repair
from tests.support.database.run_states import STATUSES, US, write
from tests.support.database.runs_at_random import at_random

_TABLES, _RUNS = 20, 60
_ANSWERS: tuple[Any, ...] = ({"i1": True, "i2": "no"}, {}, "yes", ["yes"], None, 3)
_STORED = text("""
SELECT thread_id, checkpoint_id, channel, type, idx, convert_from(blob, 'UTF8') AS answer FROM checkpoint_writes
""")


@pytest.mark.parametrize("action", ["cancel", "fail", "requeue"])
@pytest.mark.parametrize("seed", range(2))
def test_repair_does_what_its_model_does(rolled_back: RolledBack, action: str, seed: int) -> None:
    random = Random(seed)
    for _ in range(_TABLES):
        states = at_random(random, _RUNS)
        run_ids = [state.id for state in states if random.random() < 0.8]
        from_start = action == "requeue" and random.random() < 0.5
        dry_run = random.random() < 0.2
        terms: dict[str, Any] = {"action": action, "reason": "by ada", "from_start": from_start, "dry_run": dry_run}
        parameters = {**terms, "run_ids": run_ids, "actor": US}
        with rolled_back() as connection:
            compare(connection, states, REPAIR, parameters, partial(repair, run_ids=run_ids, **terms))


@pytest.mark.parametrize("given", _ANSWERS, ids=json.dumps)
def test_answer_does_what_its_model_does(rolled_back: RolledBack, given: Any) -> None:
    random = Random(json.dumps(given))
    for _ in range(_TABLES // 2):
        states = at_random(random, _RUNS)
        run_ids = [state.id for state in states if random.random() < 0.8]
        dry_run = random.random() < 0.2
        model = partial(answer, run_ids=run_ids, given=given, dry_run=dry_run)
        answered = [state.id for state in states if model(state)[1] is not state]
        parameters = {"run_ids": run_ids, "answer": json.dumps(given), "actor": US, "dry_run": dry_run}
        with rolled_back() as connection:
            compare(connection, states, ANSWER, parameters, model)
            stored = sorted(tuple(row) for row in connection.execute(_STORED))
        assert stored == [(each, "c", "__resume__", "json", -4, json.dumps(given)) for each in answered]


@pytest.mark.parametrize("seed", range(4))
def test_filter_chooses_and_counts_what_its_model_does(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    for _ in range(4):
        states = at_random(random, 200)
        with rolled_back() as connection:
            now: datetime = connection.scalar(text("SELECT now()"))
            write(connection, states)
            for _ in range(40):
                wanted = _wanted(random)
                chosen = [state.id for state in states if wanted.chooses(state)]
                parameters = _parameters(wanted, now)
                limit = random.choice((1, 5, 1000))
                page = [each for each in chosen if each > wanted.after][:limit]
                rows = connection.execute(CHOOSE_RUNS, {**parameters, "limit": limit}).all()
                assert [row.run_id for row in rows] == page, wanted
                del parameters["after"]
                assert connection.scalar(COUNT_RUNS, parameters) == len(chosen), wanted


def _wanted(random: Random) -> Wanted:
    """Return a filter with few conditions, so that it chooses something."""

    def maybe[T](*values: T) -> T | None:
        return random.choice(values) if random.random() < 0.3 else None

    return Wanted(
        after=maybe("r050", "r120") or "",
        statuses=maybe(*((each,) for each in STATUSES), ("pending", "failed")) or (),
        workflow=maybe("w1", "w2"),
        workspace=maybe("a", "b", ""),
        error_class=maybe("ValueError", "KeyError"),
        older_than=maybe(10, 100),
        since=maybe(10, 100),
        since_ago=maybe(10, 100, 1000),
        dead=random.random() < 0.3,
        waiting=random.random() < 0.3,
    )


def _parameters(wanted: Wanted, now: datetime) -> dict[str, Any]:
    since = None if wanted.since is None else now - timedelta(seconds=wanted.since)
    return {**vars(wanted), "statuses": [*wanted.statuses], "since": since}


@pytest.mark.parametrize("seed", range(2))
def test_runs_that_exist_are_locked_with_and_without_a_row(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, _RUNS)
    wanted = [state.id for state in states if random.random() < 0.7]
    existing = sorted(state.id for state in states if state.status and state.id in wanted)
    with rolled_back() as connection:
        write(connection, states)
        for statement in (LOCK_RUNS, EXISTING_RUNS):
            assert _ids(connection, statement, run_ids=[*wanted, "no run"]) == existing
        for run_id in (*wanted, "no run"):
            assert _ids(connection, AWAIT_RUN, run_id=run_id) == [run_id] * (run_id in existing)


def _ids(connection: Connection, statement: Any, **parameters: Any) -> list[str]:
    return sorted(row.run_id for row in connection.execute(statement, parameters))
