"""What commands read of runs is what models in Python say: lists, ids, processes, what an adoption finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.ops import demo
from orcheo_dispatch.ops.adoption import leaked_slots, leftovers
from orcheo_dispatch.ops.demo.observed import Execution, Observed
from orcheo_dispatch.ops.operating import scopes
from orcheo_dispatch.ops.runs import list as list_of_runs
from orcheo_dispatch.ops.runs import story
from tests.support.database.comparing import RolledBack
from tests.support.database.databases import Database
from tests.support.database.rows import add_process, add_workflow
from tests.support.database.run_states import (
    CREATED,
    LIVE,
    OTHER,
    OUTCOMES,
    STATUSES,
    US,
    WORKFLOWS,
    WORKSPACES,
    Entry,
    State,
    Trace,
    write,
)
from tests.support.database.runs import store_of
from tests.support.database.runs_at_random import at_random

_LABELS = ("webhook", "other", "nightly")
_FILTERS = ("stuck", "dead", "retrying", "waiting", "lost")


def _states(random: Random) -> list[State]:
    states = at_random(random, random.choice((0, 3, 40, 40)))
    return [_relabelled(each, random.choice(_LABELS), by_itself=random.random() < 0.5) for each in states]


def _relabelled(state: State, label: str, *, by_itself: bool) -> State:
    """Return it with another label, which is also the author of its first audit record if it was made by itself."""
    audit = (f"{label if by_itself else 'api'} {CREATED}", *state.audit[1:]) if state.status else ()
    return replace(state, label=label, audit=audit)


def _some(random: Random, values: tuple[str, ...]) -> list[str]:
    return random.sample(values, random.choice((0, 0, 1, 2)))


def _lost(entry: Entry | None) -> bool:
    if entry is None:
        return False
    return entry.outcome == "lost" or (entry.outcome == "requeued" and entry.reason == "worker_lost")


def _is_wanted(state: State, wanted: dict[str, Any]) -> bool:
    entry = state.entry
    is_one = {
        "stuck": state.stuck,
        "dead": state.dead,
        "retrying": state.scheduled and entry is not None,
        "waiting": state.waits,
        "lost": _lost(entry),
    }
    return (
        state.status in (wanted["statuses"] or STATUSES)
        and state.label in (wanted["triggers"] or _LABELS)
        and (not wanted["outcomes"] or (entry is not None and entry.outcome in wanted["outcomes"]))
        and wanted["workflow"] in (None, state.workflow)
        and (wanted["since_ago"] is None or state.created <= wanted["since_ago"])
        and (wanted["until_ago"] is None or state.created >= wanted["until_ago"])
        and all(is_one[name] for name in _FILTERS if wanted[name])
    )


def _row(state: State) -> dict[str, Any]:
    entry, retry = state.entry, state.retry
    ran = None
    if entry and entry.begun is not None:
        end = entry.settled if entry.settled is not None else 0 if entry.state == "running" else None
        ran = None if end is None else float(entry.begun - end)
    return {
        "run_id": state.id,
        "workflow_id": state.workflow,
        "status": state.status,
        "triggered_by": state.label,
        "age": float(state.created),
        "state": entry and entry.state,
        "outcome": entry and entry.outcome,
        "fence": entry and entry.fence,
        "attempts": entry and entry.attempts,
        "reason": entry and entry.reason,
        "worker_id": entry and entry.worker,
        "waited": float(state.created - entry.begun) if entry and entry.begun is not None else None,
        "ran": ran,
        "retries": retry.retries if retry else 0,
        "next": retry.next if retry and state.status == "failed" else None,
        "interrupts": state.question if state.status == "running" else None,
    }


@pytest.mark.parametrize("seed", range(150))
def test_runs_that_are_listed_are_those_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = _states(random)
    states = [
        each.entered(outcome=random.choice(("requeued", "failed")), reason=random.choice(("worker_lost", "by hand")))
        if each.settled and random.random() < 0.3
        else each
        for each in states
    ]
    only = random.choice((*_FILTERS, None))
    wanted: dict[str, Any] = {
        "statuses": _some(random, STATUSES),
        "triggers": _some(random, _LABELS),
        "outcomes": _some(random, OUTCOMES),
        "workflow": random.choice((None, None, *WORKFLOWS)),
        "since_ago": random.choice((None, None, 50, 499, 500)),
        "until_ago": random.choice((None, None, 5, 6, 50)),
        **{name: name == only for name in _FILTERS},
    }
    if only and random.random() < 0.7:
        wanted |= {
            "statuses": [],
            "triggers": [],
            "outcomes": [],
            "workflow": None,
            "since_ago": None,
            "until_ago": None,
        }
    limit = random.choice((2, 100))
    with rolled_back() as connection:
        write(connection, states)
        now = connection.scalar(text("SELECT now()"))
        since, until = (
            connection.scalar(text("SELECT now() - make_interval(secs => :ago)"), {"ago": wanted[f"{name}_ago"]})
            if random.random() < 0.5
            else None
            for name in ("since", "until")
        )
        # A time of its own counts, where both are given.
        times = {"since": since, "until": until}
        times |= {f"{name}_ago": 7 if times[name] else wanted[f"{name}_ago"] for name in ("since", "until")}
        rows = connection.execute(list_of_runs._FOUND, {**wanted, **times, "limit": limit}).mappings().all()
    found = []
    for row in rows:
        created, following = row["created_at"], row["next_attempt_at"]
        assert (now - created).total_seconds() == row["age"]
        seconds = following and (following - now).total_seconds()
        found.append(
            {**{name: row[name] for name in row if name not in ("created_at", "next_attempt_at")}, "next": seconds}
        )
    listed = sorted(
        (each for each in states if each.status and _is_wanted(each, wanted)), key=lambda x: (x.created, x.id)
    )
    assert found == [_row(each) for each in listed][:limit]


@pytest.mark.parametrize("seed", range(30))
def test_processes_and_claims_beside_a_run_are_those_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = _states(random)
    processes = [
        (
            random.choice(("beat", "dispatcher", "worker")),
            random.choice((1, 29, 31)),
            random.randint(1, 9),
            random.randint(0, 9),
        )
        for _ in range(random.choice((0, 1, 5)))
    ]
    workflow, workspace = random.choice(WORKFLOWS), random.choice(WORKSPACES)
    live = [each for each in states if each.entry and each.entry.state in LIVE]
    workers = [each for each in processes if each[0] == "worker" and each[1] < 30]
    with rolled_back() as connection:
        write(connection, states)
        for kind, seen, concurrency, running in processes:
            add_process(connection, kind, seen=seen, concurrency=concurrency, running=running)
        row = connection.execute(story._FLEET, {"workflow": workflow, "workspace": workspace}).one()
    assert row._mapping == {
        "dispatchers": sum(each[0] == "dispatcher" and each[1] < 30 for each in processes),
        "workers": len(workers),
        "places": sum(each[2] for each in workers),
        "taken": sum(each[3] for each in workers),
        "queued": sum(each.entry is not None and each.entry.state != "running" for each in live),
        "of_workflow": sum(each.workflow == workflow for each in live),
        "of_workspace": sum(workspace is not None and each.workspace == workspace for each in live),
    }


@pytest.mark.parametrize("seed", range(60))
def test_runs_that_are_left_behind_and_holders_of_slots_are_those_of_the_model(
    rolled_back: RolledBack, seed: int
) -> None:
    random = Random(seed)
    older, every = random.choice((40, 60)), random.random() < 0.3
    triggers = random.sample(_LABELS, random.choice((0, 1, 2)))
    # Many of them are in no row of the ledger.
    states = [
        replace(each, entry=None, retry=None, question=None) if each.status and random.random() < 0.5 else each
        for each in _states(random)
    ]
    held = random.sample([each.id for each in states], len(states) // 4)
    ended, cancelled = random.choice(((10, 100), (100, 1000)))
    known = [state for state in states if state.status]
    silent = [each for each in known if each.updated > older and (each.entry is None or each.entry.state not in LIVE)]
    ours = [each for each in silent if (every or each.label in triggers) and not each.of_chatkit]

    def left(status: str, among: list[State]) -> list[tuple[str, float]]:
        found = sorted((each for each in among if each.status == status), key=lambda each: (-each.created, each.id))
        return [(each.id, float(each.updated)) for each in found]

    def holds(state: State) -> bool:
        return (
            state.status in ("pending", "running")
            or state.updated < ended
            or (state.entry is not None and state.entry.slot in ("held", "due"))
            or state.id in held
            or (state.status == "cancelled" and state.entry is None and state.updated < cancelled)
        )

    with rolled_back() as connection:
        write(connection, states)
        running = connection.execute(leftovers._RUNNING, {"older_than": older}).all()
        assert [(row.run_id, row.silent) for row in running] == left("running", silent)
        parameters = {"older_than": older, "triggers": triggers, "every_trigger": every}
        pending = connection.execute(leftovers._PENDING, parameters).all()
        assert [(row.run_id, row.silent) for row in pending] == left("pending", ours)
        parameters = {"workspaces": ["a", "c"], "held": held, "ended": ended, "cancelled": cancelled}
        found = connection.execute(leaked_slots._HOLDERS, parameters).all()
    holders = Counter(each.workspace for each in known if each.workspace == "a" and holds(each))
    assert {row.workspace_id: row.holders for row in found} == dict(holders)


def _written(connection: Connection) -> None:
    states = [
        State("one", "pending"),
        State("one more", "failed", workflow="w2", entry=Entry("running", worker=OTHER, begun=1, lease=1, heartbeat=1)),
        State("gone", None, entry=Entry("running", worker=US, begun=1, lease=1, heartbeat=1)),
        State("gone too", None, workflow="other", entry=Entry("claimed", lease=1)),
        State("two", "succeeded", trace=Trace("completed", steps=('{"a": 1}', '{"b": 2}'))),
        State("other", "running", trace=Trace("running", steps=('{"c": 3}',))),
    ]
    states.append(State("third", "cancelled", workflow="w2"))
    write(connection, states)
    for number, process in enumerate((OTHER, US), 1):
        add_process(connection, "worker", id=process, pid=number)


@pytest.mark.parametrize(
    ("given", "exact", "beginning"),
    [
        ("one", {"one"}, {"one", "one more"}),
        ("gone", {"gone"}, {"gone", "gone too"}),
        ("two", {"two"}, {"two"}),
        ("o", set(), {"one", "one more", "other"}),
        ("none", set(), set()),
    ],
)
def test_ids_are_those_of_the_api_and_of_the_ledger(
    rolled_back: RolledBack, given: str, exact: set[str], beginning: set[str]
) -> None:
    with rolled_back() as connection:
        _written(connection)
        assert set(connection.execute(story._IDS, {"given": given}).scalars()) == exact
        assert set(connection.execute(story._IDS_THAT_BEGIN, {"given": given}).scalars()) == beginning


def test_workflows_with_runs_are_found_by_id_and_by_its_beginning(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        _written(connection)
        assert [connection.scalar(list_of_runs.WORKFLOW_WITH_RUNS, {"given": each}) for each in ("w1", "w", "w3")] == [
            *(True, False, False),
        ]
        found = [
            connection.execute(list_of_runs.WORKFLOWS_WITH_RUNS, {"given": each}).scalars().all()
            for each in ("w", "w2", "1", "")
        ]
    assert found == [["w1", "w2"], ["w2"], [], ["w1", "w2"]]


def test_scope_is_a_workspace_of_orcheo_and_the_owner_that_of_the_workflow(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        workspace = connection.scalar(text("SELECT id::text FROM workspaces"))
        for given in (workspace, "nothing"):
            assert connection.scalar(scopes._WORKSPACE, {"given": given}) is (given == workspace)
        for workflow in WORKFLOWS:
            add_workflow(connection, workflow)
            connection.execute(
                text("UPDATE workflows SET workspace_id = id || ' owner' WHERE id = :id"), {"id": workflow}
            )
        owners = {each: connection.scalar(scopes._OWNER, {"given": each}) for each in (*WORKFLOWS, "w3")}
    assert owners == {"w1": "w1 owner", "w2": "w2 owner", "w3": None}


def test_steps_of_a_run_are_its_own_and_the_last_of_them_says_how_long_it_is_silent(rolled_back: RolledBack) -> None:
    with rolled_back() as connection:
        _written(connection)
        connection.execute(
            text("UPDATE execution_history_steps SET at = now() - make_interval(secs => 30 - 10 * step_index)")
        )
        last = connection.execute(leftovers._LAST_STEPS, {"run_ids": ["two", "one"]}).all()
        assert [(row.run_id, row.silent) for row in last] == [("two", 20.0)]


def test_demo_sees_the_steps_and_the_worker_of_its_own_run(database: Database, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with store_of(database) as (_, engine):
        with engine.begin() as connection:
            _written(connection)
            row = connection.execute(demo._TERMINAL).one()
        assert (row.ended, row.total) == (3, 5)
        assert [*Observed(engine, "two", begun).look()] == [{"a": 1}, {"b": 2}]
        begun.write_text("step\nhalf")
        assert [*Observed(engine, "one more", begun).look()] == [Execution("step", 1)]
        assert [*Observed(engine, "gone", begun).look()] == [Execution("step", 2)]
