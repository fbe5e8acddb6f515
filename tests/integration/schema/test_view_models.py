"""Views for dashboards show what models in Python find, for runs in any combination of states."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.support.database.comparing import RolledBack
from tests.support.database.look_model import DEFAULT, Ours
from tests.support.database.rows import add_process
from tests.support.database.run_states import CHATKIT, CREATED, FAILED, OUTCOMES, STARTED_BY_WORKER, Entry, State, write
from tests.support.database.runs_at_random import at_random

_CREATED = text("""
UPDATE orcheo_dispatch.dispatch AS d SET created_at = now() - make_interval(secs => x.created)
  FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS x(id text, created float8) WHERE d.run_id = x.id
""")
_ENDED = text("INSERT INTO orcheo_dispatch.ended (minute, outcome, runs) VALUES (:minute, :outcome, :runs)")
_WANTED = text("SELECT * FROM orcheo_dispatch.wanted_workers_for(:target, :concurrency)")
_OF_CHATKIT = text("SELECT orcheo_dispatch.of_chatkit(:label, CAST(:payload AS jsonb))")
_COUNTED = ("succeeded", *FAILED, "cancelled")
_CLAIMED = 3600
"""How long ago each run was claimed (seconds)."""
_DAY = 86_400


@dataclass(frozen=True)
class Tables:
    """Runs, how long ago each was created, and the ends of runs that were pruned, by minute and outcome."""

    connection: Connection
    now: datetime
    states: list[State]
    created: dict[str, int]
    pruned: dict[tuple[datetime, str], int]

    def view(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a view."""
        found = self.connection.execute(text(f"SELECT * FROM orcheo_dispatch.{name}")).mappings()
        return [dict(row) for row in found]

    def settled(self) -> Iterator[tuple[State, Entry, int]]:
        """Yield the runs that settled within a day, and how long ago that was."""
        for state in self.states:
            if state.entry is not None and state.entry.settled is not None and state.entry.settled < _DAY:
                yield state, state.entry, state.entry.settled

    def ends(self) -> Counter[tuple[datetime, str]]:
        """Return the number of runs that ended, by minute and outcome."""
        last = max((minute for minute, _ in self.pruned), default=None)
        found = Counter(self.pruned)
        for state in self.states:
            if (entry := state.entry) is not None and entry.settled is not None:
                minute = (self.now - timedelta(seconds=entry.settled)).replace(second=0, microsecond=0)
                if last is None or minute > last:
                    found[minute, str(entry.outcome)] += 1
        return found


def _tables(random: Random, connection: Connection) -> Tables:
    states = [_likely(random, state) for state in at_random(random, 60)]
    write(connection, states)
    created = {state.id: random.choice((4000, 5000, 9000)) for state in states if state.entry}
    rows = [{"id": run_id, "created": seconds} for run_id, seconds in created.items()]
    connection.execute(_CREATED, {"rows": json.dumps(rows)})
    now: datetime = connection.scalar(text("SELECT now()")).astimezone(UTC)
    this_minute = now.replace(second=0, microsecond=0)
    since = random.choice((0, 5, 59, 70, 1600))
    pruned = {
        (this_minute - timedelta(minutes=minutes), outcome): random.randint(1, 9)
        for minutes in (1, 6, 59, 60, 61, 90, 1439, 1500, 7 * 1440 + 1, 9 * 1440)
        for outcome in OUTCOMES
        if minutes >= since and random.random() < 0.3
    }
    for (minute, outcome), runs in pruned.items():
        connection.execute(_ENDED, {"minute": minute, "outcome": outcome, "runs": runs})
    return Tables(connection, now, states, created, pruned)


def _likely(random: Random, state: State) -> State:
    """Return it as a run of ChatKit, of a lost worker, or one that changed long ago, often enough."""
    if state.status and random.random() < 0.2:
        author, source = random.choice(("other", "api")), random.choice((None, CHATKIT))
        state = replace(state, status="pending", label="other", source=source, audit=(f"{author} {CREATED}",))
        return replace(state, entry=None, retry=None, question=None)
    if random.random() < 0.3:
        state = replace(state, updated=5000)
    lost = state.entry is not None and state.entry.state == "settled" and random.random() < 0.3
    return state.entered(reason="worker_lost") if lost else state


type Check = Callable[[Tables], None]


def _latest_ends(tables: Tables) -> None:
    expected = {}
    for state, entry, settled in tables.settled():
        told = entry.outcome in (*FAILED, "requeued")
        expected[state.id] = {
            "outcome": entry.outcome,
            "error_class": (entry.reason or "unknown") if told else None,
            **_times(tables, state, entry, settled),
        }
    rows = {row["run_id"]: row for row in tables.view("settled_runs")}
    assert {run_id: {name: row[name] for name in expected[run_id]} for run_id, row in rows.items()} == expected


def _times(tables: Tables, state: State, entry: Entry, settled: int) -> dict[str, int | None]:
    created = tables.created[state.id]
    return {
        "pending_seconds": created - _CLAIMED if entry.attempts == 1 else None,
        "queued_seconds": None if entry.begun is None else _CLAIMED - entry.begun,
        "running_seconds": None if entry.begun is None else entry.begun - settled,
        "total_seconds": created - settled,
    }


def _failures(tables: Tables) -> None:
    expected: dict[tuple[str, str], list[str]] = defaultdict(list)
    for state, entry, _ in tables.settled():
        if entry.outcome in FAILED:
            expected[entry.outcome, entry.reason or "unknown"].append(state.workflow)
    rows = {(row["outcome"], row["error_class"]): row for row in tables.view("failures")}
    assert {key: (row["runs"], row["workflows"]) for key, row in rows.items()} == {
        key: (len(workflows), len({*workflows})) for key, workflows in expected.items()
    }


def _lost(tables: Tables) -> None:
    expected = {
        state.id: entry.reason or "unknown"
        for state, entry, _ in tables.settled()
        if entry.outcome == "lost" or (entry.outcome in (*FAILED, "requeued") and entry.reason == "worker_lost")
    }
    assert {row["run_id"]: row["reason"] for row in tables.view("lost_runs")} == expected


def _latencies(tables: Tables) -> None:
    of_workflow: dict[str, list[tuple[Entry, dict[str, int | None]]]] = defaultdict(list)
    for state, entry, settled in tables.settled():
        if entry.begun is not None and entry.outcome in _COUNTED:
            of_workflow[state.workflow].append((entry, _times(tables, state, entry, settled)))
    rows = {row["workflow_id"]: row for row in tables.view("workflow_latencies")}
    assert rows.keys() == of_workflow.keys()
    for workflow, ended in of_workflow.items():
        row = rows[workflow]
        failed = sum(entry.outcome in FAILED for entry, _ in ended)
        assert (row["runs"], row["failed"]) == (len(ended), failed)
        for what in ("pending", "queued", "running", "total"):
            times = [seconds for _, each in ended if (seconds := each[f"{what}_seconds"]) is not None]
            for share, name in ((0.5, "p50"), (0.95, "p95")):
                assert row[f"{what}_{name}_seconds"] == _percentile(times, share)


def _percentile(values: list[int], share: float) -> int | None:
    """Return it as Postgres' percentile_disc does: a value, none between two."""
    return sorted(values)[max(ceil(share * len(values)), 1) - 1] if values else None


def _by_minute(tables: Tables) -> None:
    found: Counter[tuple[datetime, str]] = Counter()
    for row in tables.view("ended_by_minute"):
        found[row["minute"].astimezone(UTC), row["outcome"]] += int(row["runs"])
    day = tables.now - timedelta(days=1)
    # The minute in which the day began is there in part, if its runs are.
    expected = {key: runs for key, runs in tables.ends().items() if key[0] > day}
    assert dict(found) == expected


def _throughput(tables: Tables) -> None:
    this_minute = tables.now.replace(second=0, microsecond=0)
    ends = tables.ends()
    rows = {row["minute"].astimezone(UTC): row for row in tables.view("throughput")}
    assert [*rows] == [this_minute - timedelta(minutes=minutes) for minutes in range(60, 0, -1)]
    for minute, row in rows.items():
        failed = sum(ends[minute, outcome] for outcome in FAILED)
        counts = (ends[minute, "succeeded"], failed, ends[minute, "cancelled"])
        assert (row["ended"], row["succeeded"], row["failed"], row["cancelled"]) == (sum(counts), *counts)


def _by_hour(tables: Tables) -> None:
    this_hour = tables.now.replace(minute=0, second=0, microsecond=0)
    expected: Counter[tuple[datetime, str]] = Counter()
    for (minute, outcome), runs in tables.ends().items():
        hour = minute.replace(minute=0)
        if outcome in _COUNTED and hour >= this_hour - timedelta(hours=167):
            expected[hour, "failed" if outcome in FAILED else outcome] += runs
    for state in tables.states:
        if state.entry is not None and state.entry.state == "running":
            expected[_hour(tables.now, state.entry.begun or 0), "running"] += 1
        if DEFAULT.pending(state):
            expected[_hour(tables.now, state.created), "pending"] += 1
    found = {(row["hour"].astimezone(UTC), row["status"]): row["runs"] for row in tables.view("runs_by_hour")}
    assert found == dict(expected)


def _hour(now: datetime, seconds: int) -> datetime:
    return (now - timedelta(seconds=seconds)).replace(minute=0, second=0, microsecond=0)


def _elsewhere(tables: Tables) -> None:
    def begun(state: State) -> bool:
        ours = state.entry is not None and state.entry.attempts > 0
        return state.status not in (None, "pending") and not ours and STARTED_BY_WORKER in state.audit

    running = {
        state.id
        for state in tables.states
        if state.status == "running" and (state.entry is None or state.entry.state != "running")
    }
    assert {row["run_id"] for row in tables.view("running_elsewhere")} == running
    expected = {state.id for state in tables.states if begun(state) and state.updated < 600}
    assert {row["run_id"] for row in tables.view("begun_elsewhere")} == expected


def _pending(tables: Tables) -> None:
    pending = [state for state in tables.states if state.status == "pending"]
    ours = [state for state in pending if DEFAULT.pending(state)]
    unclaimed = {
        state.id: "chatkit" if state.of_chatkit else "not_in_allow_list"
        for state in pending
        if state not in ours and state.created > 60
    }
    assert {row["run_id"]: row["reason"] for row in tables.view("unclaimed_runs")} == unclaimed
    late = sum(state.created > 300 for state in ours)
    ages = [state.created for state in ours]
    (kpi,) = tables.view("pending_kpi")
    share = late / len(ours) if ours else 0.0
    assert (kpi["pending"], kpi["late"], kpi["late_share"]) == (len(ours), late, share)
    assert kpi["oldest_seconds"] == max(ages, default=0)
    (row,) = tables.view("pending_ages")
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    assert {name: row[f"{name}_seconds"] for name in shares} == {
        name: _percentile(ages, share) for name, share in shares.items()
    }
    by_trigger = Counter((state.label, state in ours) for state in pending)
    of_late = Counter((state.label, state in ours) for state in pending if state.created > 300)
    assert {
        (row["triggered_by"], row["ours"]): (row["pending"], row["late"]) for row in tables.view("pending_by_trigger")
    } == {key: (runs, of_late[key]) for key, runs in by_trigger.items()}


def _live(tables: Tables) -> None:
    workers = [("worker", 3, 5), ("worker", 4, 60), ("dispatcher", 1, 5), ("worker", 2, 5)]
    for kind, concurrency, seen in workers:
        add_process(tables.connection, kind, seen=seen, concurrency=concurrency)
    entries = [state.entry for state in tables.states if state.entry]
    live = Counter(entry.state for entry in entries)
    stuck = {state.id for state in tables.states if state.stuck}
    assert {row["run_id"] for row in tables.view("stuck_runs")} == stuck
    (row,) = tables.view("queue_and_backlog")
    backlog = sum(map(DEFAULT.pending, tables.states))
    waiting = live["claimed"] + live["published"]
    assert (row["backlog"], row["unclaimed"]) == (backlog, max(backlog - waiting, 0))
    assert (row["claimed"], row["published"], row["running"]) == (live["claimed"], live["published"], live["running"])
    assert (row["stuck"], row["workers"], row["capacity"]) == (len(stuck), 2, 5)
    assert row["slots_due"] == sum(entry.slot == "due" for entry in entries)


def _begins_again(tables: Tables) -> None:
    def shown(state: State) -> bool:
        if (entry := state.entry) is None:
            return False
        if entry.settled is None:
            return entry.attempts > (1 if entry.state == "running" else 0)
        again = entry.attempts > 1 or (entry.attempts == 1 and entry.outcome == "requeued")
        return entry.settled < _DAY and again

    expected = {
        state.id: (state.entry.attempts, state.entry.refunded, state.retry.retries if state.retry else 0)
        for state in tables.states
        if state.entry and shown(state)
    }
    rows = tables.view("resumed_runs")
    assert {row["run_id"]: (row["begins"], row["refunded"], row["retries"]) for row in rows} == expected
    retrying = {state.id for state in tables.states if state.scheduled}
    assert {row["run_id"] for row in tables.view("retrying_runs")} == retrying
    assert {row["run_id"] for row in tables.view("dead_runs")} == {state.id for state in tables.states if state.dead}
    waiting = {state.id: state.entry.slot == "held" for state in tables.states if state.entry and state.waits}
    assert {row["run_id"]: row["holds_slot"] for row in tables.view("waiting_runs")} == waiting


def _wanted(tables: Tables) -> None:
    for kind, concurrency, seen in [("worker", 3, 5), ("worker", 40, 60), ("dispatcher", 9, 5), ("worker", 6, 5)]:
        add_process(tables.connection, kind, seen=seen, concurrency=concurrency)
    ended = [
        (state.entry.settled, max(state.entry.begun - state.entry.settled, 0))
        for state in tables.states
        if state.entry
        and state.entry.settled is not None
        and state.entry.begun is not None
        and state.entry.outcome in ("succeeded", "failed", "timed_out", "cancelled")
    ]
    seconds = [ran for settled, ran in ended if settled < 3600] or [ran for _, ran in ended]
    average = sum(seconds) / len(seconds) if seconds else None
    running = sum(state.entry is not None and state.entry.state == "running" for state in tables.states)
    backlog = sum(map(DEFAULT.pending, tables.states))
    for target in (0.0, 1.0, 100.0):
        for given in (None, 2):
            due = [state for state in tables.states if state.retry and (state.retry.next or target + 1) <= target]
            share = 1.0 if average is None or target == 0 else min(1.0, average / target)
            capacity = float(given or 4.5)
            workers = ceil((running + (backlog + len(due)) * share) / capacity)
            expected = (
                max(workers, min(1, running + backlog + len(due))),
                backlog,
                len(due),
                running,
                average,
                capacity,
            )
            row = tables.connection.execute(_WANTED, {"target": target, "concurrency": given}).one()
            assert tuple(row) == (*expected, target)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "check",
    [
        *(_latest_ends, _failures, _lost, _latencies, _by_minute, _throughput, _by_hour),
        *(_elsewhere, _pending, _live, _begins_again, _wanted),
    ],
)
def test_view_shows_what_the_model_finds(rolled_back: RolledBack, check: Check, seed: int) -> None:
    with rolled_back() as connection:
        check(_tables(Random(seed), connection))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ([], DEFAULT),
        ([None], DEFAULT),
        ([["other"]], Ours(["other"], every_trigger=False)),
        ([["other"], None, ["webhook"]], Ours(["other", "webhook"], every_trigger=False)),
        ([["*"]], Ours(["*"], every_trigger=True)),
        ([["*"], ["other"]], Ours(["*", "other"], every_trigger=True)),
    ],
)
def test_pending_runs_are_those_that_dispatchers_claim(
    rolled_back: RolledBack, told: list[list[str] | None], ours: Ours, seed: int
) -> None:
    with rolled_back() as connection:
        tables = _tables(Random(seed), connection)
        for triggers in told:
            add_process(connection, "dispatcher", triggers=triggers)
        (listed,) = tables.view("allow_list")
        assert listed["every_trigger"] is ours.every_trigger
        assert ours is DEFAULT or listed["triggers"] == ours.triggers
        pending = {state.id: ours.pending(state) for state in tables.states if state.status == "pending"}
        assert {row["run_id"]: row["ours"] for row in tables.view("all_pending_runs")} == pending
        claimed = {state.id for state in tables.states if ours.pending(state)}
        assert {row["run_id"] for row in tables.view("our_pending_runs")} == claimed


@pytest.mark.parametrize("label", ["webhook", "nightly"])
@pytest.mark.parametrize("actor", [None, "nightly", "ada"])
@pytest.mark.parametrize("source", [None, CHATKIT, "other"])
@pytest.mark.parametrize("keys", [None, "all", "all but one"])
def test_runs_of_chatkit_are_told_by_author_and_input(
    rolled_back: RolledBack, label: str, actor: str | None, source: str | None, keys: str | None
) -> None:
    names = ["message", "history", "thread_id", "session_id", "metadata"]
    given: dict[str, Any] = dict.fromkeys(names if keys == "all" else names[1:] if keys else [], 1)
    payload: dict[str, Any] = {"audit_log": [] if actor is None else [{"actor": actor}]}
    if source or given:
        payload["input_payload"] = {**given, **({"source": source} if source else {})}
    expected = label != "webhook" and actor != "ada" and (source == CHATKIT or keys == "all")
    with rolled_back() as connection:
        assert connection.scalar(_OF_CHATKIT, {"label": label, "payload": json.dumps(payload)}) is expected
