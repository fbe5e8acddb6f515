"""The queries of the page and of `orcheo-dispatch run` find what models in Python find, for runs in any states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import TextClause, text

from orcheo_dispatch.shared.ledger.overview import HOUR, LOST, ROWS, RUNS, STUCK, WORKFLOWS, names_of
from orcheo_dispatch.shared.ledger.statements.waits import DEAD, RETRYING, WAITING, WAITS
from orcheo_dispatch.shared.ledger.story import PAYLOAD, PROCESS, RESUMED, RUN
from tests.support.database.comparing import RolledBack
from tests.support.database.look_model import DEFAULT
from tests.support.database.rows import add_process, add_workflow, become_reader
from tests.support.database.run_states import FAILED, LIVE, OTHER, OUTCOMES, US, Entry, State, Trace, write
from tests.support.database.runs_at_random import at_random

_RUNS = 60
_DAY = 86_400
_ENDED = ("succeeded", "failed", "cancelled")


def _ended_with(state: State, outcomes: Collection[str]) -> bool:
    return state.entry is not None and state.entry.outcome in outcomes


def _settled_today(state: State) -> bool:
    return state.entry is not None and state.entry.settled is not None and state.entry.settled < _DAY


_FOUND: list[tuple[TextClause, Callable[[State], bool]]] = [
    (STUCK, lambda state: state.stuck),
    (LOST, lambda state: _settled_today(state) and _ended_with(state, ["lost"])),
    (DEAD, lambda state: _settled_today(state) and state.dead),
    (RETRYING, lambda state: state.scheduled),
    (WAITING, lambda state: state.waits),
]


@pytest.mark.parametrize("seed", range(10))
def test_lists_have_the_runs_that_the_model_finds(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, _RUNS)
    with rolled_back() as connection:
        write(connection, states)

        def found(statement: TextClause, **parameters: Any) -> list[str]:
            rows = connection.execute(statement, {"limit": 1000, "newest": 1000, **parameters})
            return sorted(row.run_id for row in rows)

        for statement, model in _FOUND:
            assert found(statement) == [state.id for state in states if model(state)]
        for _ in range(20):
            with_pending, with_running = random.random() < 0.5, random.random() < 0.5
            outcomes = random.sample(OUTCOMES, random.randint(0, 4))
            workflow = random.choice((None, "w1", "w2"))

            terms: dict[str, Any] = {"with_pending": with_pending, "with_running": with_running, "outcomes": outcomes}
            expected = [
                state.id for state in states if workflow in (None, state.workflow) and _is_shown(state, **terms)
            ]
            assert found(RUNS, workflow=workflow, **terms) == expected, terms
        entered = Counter(state.workflow for state in states if state.entry)
        shown = connection.scalars(WORKFLOWS, {"limit": 10, "newest": 1000}).all()
        assert [*shown] == sorted(entered, key=lambda each: (-entered[each], each))


def _is_shown(state: State, with_pending: bool, with_running: bool, outcomes: Collection[str]) -> bool:
    in_ledger = state.entry.state if state.entry else None
    return (
        (with_pending and DEFAULT.pending(state))
        or (in_ledger in LIVE and (with_running if in_ledger == "running" else with_pending))
        or _ended_with(state, outcomes)
    )


@pytest.mark.parametrize("seed", range(6))
def test_hour_has_the_figures_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    states = [each for n in range(4) for each in at_random(Random(f"{seed} {n}"), _RUNS)]
    states = [replace(state, id=f"r{n:03}") for n, state in enumerate(states)]
    with rolled_back() as connection:
        write(connection, states)
        now: datetime = connection.scalar(text("SELECT now()"))
        *minutes, whole = connection.execute(HOUR, {"hour_rows": 1000, "sampled": 1000}).all()
    this_minute = now.replace(second=0, microsecond=0)
    assert [row.minute for row in minutes] == [this_minute - timedelta(minutes=59 - n) for n in range(60)]
    assert whole.minute is None
    for row in (*minutes, whole):
        assert tuple(row)[1:] == pytest.approx(_figures(states, now, row.minute))


def test_times_of_the_hour_are_computed_from_a_sample(rolled_back: RolledBack) -> None:
    ran = (1, 1000, 1, 1000)
    entries = [Entry("settled", "succeeded", settled=10 * n, begun=10 * n + each) for n, each in enumerate(ran, 1)]
    with rolled_back() as connection:
        write(connection, [State(f"r{n}", "succeeded", entry=entry) for n, entry in enumerate(entries)])
        *_, whole = connection.execute(HOUR, {"hour_rows": 1000, "sampled": 2})
    assert whole.succeeded == 4
    assert whole.ran_p50 in (1, 1000)


def _figures(states: list[State], now: datetime, minute: datetime | None) -> tuple[float | None, ...]:
    """Return how many runs ended in that minute, or in the hour, and the percentiles of their times."""
    ended = []
    for state in states:
        if (entry := state.entry) and entry.settled is not None and entry.settled < 3600:
            at = (now - timedelta(seconds=entry.settled)).replace(second=0, microsecond=0)
            if minute in (None, at) and entry.outcome in ("succeeded", *FAILED, "cancelled"):
                ended.append((state, entry))
    outcomes = Counter(entry.outcome for _, entry in ended)
    timed = [(state, entry, entry.begun) for state, entry in ended if state.status and entry.begun is not None]
    waits = [state.created - begun for state, _, begun in timed]
    ran = [begun - (entry.settled or 0) for _, entry, begun in timed]
    counts = (outcomes["succeeded"], sum(outcomes[each] for each in FAILED), outcomes["cancelled"], outcomes["lost"])
    return (*counts, *(_percentile(times, share) for times in (waits, ran) for share in (0.5, 0.95)))


def _percentile(values: list[int], share: float) -> float | None:
    """Return it as Postgres' percentile_cont does, between two values."""
    if not values:
        return None
    below, rest = divmod(share * (len(values) - 1), 1)
    ordered = sorted(values)
    low, high = ordered[int(below)], ordered[min(int(below) + 1, len(values) - 1)]
    return low + (high - low) * rest


def test_runs_in_progress_do_not_crowd_out_those_that_have_ended(rolled_back: RolledBack) -> None:
    live = [State(f"live {n}", "running", entry=Entry("running", begun=1, lease=5, worker=US)) for n in range(3)]
    ended = State("ended", "failed", entry=Entry("settled", "lost", settled=1))
    nothing = {"with_pending": False, "with_running": False, "workflow": None}
    with rolled_back() as connection:
        write(connection, [*live, ended])
        for statement, more in ((RUNS, {**nothing, "outcomes": ["lost"]}), (LOST, {}), (DEAD, {})):
            rows = connection.execute(statement, {"limit": 10, "newest": 1, **more})
            assert [row.run_id for row in rows] == ["ended"]


@pytest.mark.parametrize("seed", range(10))
def test_runs_are_shown_as_the_model_shows_them(rolled_back: RolledBack, seed: int) -> None:
    states = at_random(Random(seed), _RUNS)
    wanted = [state for state in states if state.status and state.id != "r000"]
    run_ids = [state.id for state in states if state.id != "r000"]
    with rolled_back() as connection:
        write(connection, states)
        shown = connection.execute(ROWS, {"run_ids": run_ids, "limit": 1000}).mappings().all()
        times = [(row["changed_ago"], row["run_id"]) for row in shown]
        assert times == sorted(times)
        assert len(shown) == len(wanted)
        rows = {row["run_id"]: row for row in shown}
        for state in wanted:
            assert {**rows[state.id]} == {**_row(state), "created_at": rows[state.id]["created_at"]}
        waits = {row.run_id: row for row in connection.execute(WAITS, {"run_ids": run_ids})}
        assert waits.keys() == {state.id for state in wanted}
        for state in wanted:
            row = waits[state.id]
            next_in = state.retry.next if state.retry and state.status == "failed" else None
            interrupts = state.question if state.status == "running" else None
            assert (row.retries, row.next_attempt_in) == (state.retry.retries if state.retry else 0, next_in)
            assert (row.next_attempt_at is None) == (next_in is None)
            assert (row.interrupts, row.waiting_for is None) == (interrupts, interrupts is None)


def _row(state: State) -> dict[str, Any]:
    """Return what the page shows of a run, but for the time of its creation."""
    entry = state.entry
    has_ended = state.status in _ENDED
    ended = entry.settled if entry and has_ended else None
    begun = entry.begun if entry else None
    is_running = entry is not None and entry.state == "running"
    changed = next(each for each in (ended, begun if is_running else None, state.created) if each is not None)
    until = next((each for each in (begun, ended) if each is not None), 0)
    return {
        "run_id": state.id,
        "workflow_id": state.workflow,
        "workspace_id": state.workspace,
        "status": state.status,
        "triggered_by": state.label,
        "state": entry and entry.state,
        "outcome": entry.outcome if entry and has_ended else None,
        "attempts": entry and entry.attempts,
        "reason": entry.reason if entry and entry.reason != "run is gone" else None,
        "worker_id": entry and entry.worker,
        "stuck": state.stuck,
        "created_ago": float(state.created),
        "changed_ago": float(changed),
        "waited": float(state.created - (0 if state.status == "pending" else until)),
        "ran": None if state.status == "pending" or begun is None else float(begun - (ended or 0)),
        "silent_for": entry.heartbeat if entry and is_running else None,
    }


@pytest.mark.parametrize("with_error", [True, False])
def test_story_reads_the_error_of_its_own_run_if_it_is_to_be_shown(rolled_back: RolledBack, with_error: bool) -> None:
    states = [State(name, "failed", error=f"error of {name}", audit=("api other {}",)) for name in ("r", "s")]
    with rolled_back() as connection:
        write(connection, states)
        row = connection.execute(PAYLOAD, {"run_id": "r", "with_error": with_error}).one()
    assert row.error == ("error of r" if with_error else None)
    assert [each["action"] for each in row.audit] == ["other"]


def test_story_reads_how_its_own_run_was_resumed_and_the_process_that_is_meant(rolled_back: RolledBack) -> None:
    resumed: list[dict[str, Any]] = [{"after_step": step, "tasks": 1} for step in (3, 5)]
    steps: list[dict[str, Any]] = [{"step": 1}, {"resumed": resumed[0]}, {"resumed": {"tasks": 1}}]
    steps.append({"resumed": resumed[1]})
    trace = Trace("running", steps=tuple(map(Trace.step, steps)))
    other = Trace("running", steps=(Trace.step({"resumed": {"after_step": 9}}),))
    with rolled_back() as connection:
        write(connection, [State("r", "running", trace=trace), State("s", "running", trace=other)])
        assert [row.resumed for row in connection.execute(RESUMED, {"run_id": "r"})] == resumed
        for process, seen in ((US, 500), (OTHER, 1)):
            add_process(connection, "worker", id=process, seen=seen)
        for process, seen in ((US, 500), (OTHER, 1)):
            row = connection.execute(PROCESS, {"id": process}).one()
            assert (row.id, row.seen_ago) == (process, seen)


@pytest.mark.parametrize("columns", ["id, handle", "id, handle, payload"])
def test_names_are_those_of_the_workflows_that_are_asked_for(rolled_back: RolledBack, columns: str) -> None:
    with rolled_back() as connection:
        add_workflow(connection, "w1", handle="one", payload='{"name": "One"}')
        add_workflow(connection, "w2", handle="two")
        add_workflow(connection, "w3", handle="three")
        become_reader(connection, f"({columns}) ON workflows")
        names = names_of(connection, ["w1", "w2", "no workflow"])
    assert names == {"w1": "One" if "payload" in columns else "one", "w2": "two"}


@pytest.mark.parametrize("seed", range(4))
def test_story_begins_with_what_the_model_says_of_the_run(rolled_back: RolledBack, seed: int) -> None:
    states = at_random(Random(seed), _RUNS)
    with rolled_back() as connection:
        write(connection, states)
        for process, seen in ((US, 500), (OTHER, 1)):
            add_process(connection, "worker", id=process, seen=seen)
        for state in states:
            row = connection.execute(RUN, {"run_id": state.id}).one()
            entry, is_running = state.entry, state.status == "running"
            next_in = state.retry.next if state.retry and state.status == "failed" else None
            interrupts = state.question if is_running else None
            assert (row.workflow_id, row.workspace_id, row.triggered_by) == (
                state.workflow,
                state.workspace,
                state.label,
            )
            assert row.status == state.status
            assert (row.state, row.outcome) == ((entry.state, entry.outcome) if entry else (None, None))
            assert row.lease_left == (entry.lease if entry else None)
            assert (row.ours, row.late) == (
                (DEFAULT.pending(state), state.created > 300) if state.status == "pending" else (None, None)
            )
            assert (row.stuck, row.dead) == (state.stuck, state.dead)
            assert (row.retries, row.retry_in) == (state.retry.retries if state.retry else 0, next_in)
            assert (row.next_attempt_at is None) == (next_in is None)
            assert (row.interrupts, row.waiting_for is None) == (interrupts, interrupts is None)
            worker_alive = entry is not None and entry.worker == OTHER
            assert (row.waiting_since is None, row.worker_alive) == (interrupts is None, worker_alive)
        assert connection.execute(RUN, {"run_id": "no run"}).one().workflow_id is None
