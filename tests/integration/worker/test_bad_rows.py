"""A row that Postgres refuses, or that somebody holds, holds up its own run: polls and upkeep go on for all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import redis

from orcheo_dispatch.dispatcher.app import Dispatcher
from orcheo_dispatch.shared.broker.installation import find_installation
from tests.support.database.bad_rows import STATES, Events, allow, events, holding, refuse
from tests.support.database.databases import Database
from tests.support.database.runs import WORKSPACE_ID, everything, execute, insert_runs, ledger, read_run, settings_for
from tests.support.processes.dispatchers import dispatcher_of

__all__ = ["events"]
_LEDGER, _RUNS = "orcheo_dispatch.dispatch", "workflow_runs"
_SOON_SECONDS = 3.0
"""By as much may a bad row delay its neighbours. A poll without one takes some 10 ms."""


_dispatcher = partial(dispatcher_of, heartbeat=0.1, worker_lease=0.5, lost_runs="fail")


def _claimed(database: Database) -> set[str]:
    rows = everything(database, f"SELECT run_id FROM {_LEDGER} WHERE state IN ('claimed', 'published')")
    return {row["run_id"] for row in rows}


@pytest.mark.parametrize("at_commit", [False, True], ids=["at once", "at commit"])
@pytest.mark.parametrize("state", STATES)
def test_run_whose_claim_is_refused_is_left_out(
    database: Database, redis_url: str, events: Events, state: str, at_commit: bool
) -> None:
    ids = insert_runs(database, 10)
    refuse(database, ids[4], state=state, at_commit=at_commit)
    with _dispatcher(database, redis_url) as dispatcher:
        assert dispatcher.poller.poll().published == 9
        again = dispatcher.poller.poll()
        assert (again.claimed, again.failing) == (0, ())
        (line,) = events.of("run_refused")
        assert (line["run_id"], line["step"]) == (ids[4], "claim")
        assert state in line["reason"]
        assert "function" in line["reason"]
        assert "secret" not in str(events.all)
        assert events.of("database_unavailable") == []
    assert _claimed(database) == {*ids} - {ids[4]}


@pytest.mark.parametrize("state", STATES)
def test_run_whose_claim_is_refused_is_named_where_it_is_alone(
    database: Database, redis_url: str, events: Events, state: str
) -> None:
    (run_id,) = insert_runs(database)
    refuse(database, run_id, state=state)
    with _dispatcher(database, redis_url) as dispatcher:
        assert (dispatcher.poller.poll().claimed, dispatcher.poller.poll().failing) == (0, ())
    assert [line["run_id"] for line in events.of("run_refused")] == [run_id]


@pytest.mark.parametrize("bad", [1, 7, 40])
@pytest.mark.parametrize("overrides", [{}, {"max_running_per_workflow": 45}], ids=["", "under limits"])
def test_any_number_of_refused_runs_is_sorted_out(
    database: Database, redis_url: str, bad: int, overrides: dict[str, Any]
) -> None:
    ids = insert_runs(database, 80)
    execute(database, f"ALTER TABLE {_LEDGER} ADD CONSTRAINT odd CHECK (run_id <> ALL ('{{{','.join(ids[:bad])}}}'))")
    with _dispatcher(database, redis_url, **overrides) as dispatcher:
        began = time.monotonic()
        claimed = sum(dispatcher.poller.poll().claimed for _ in range(3))
        assert time.monotonic() - began < 3 * _SOON_SECONDS
    assert claimed == min(80 - bad, overrides.get("max_running_per_workflow", 80))


def test_refused_run_is_tried_again_and_its_reason_is_logged_once(
    database: Database, redis_url: str, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orcheo_dispatch.shared.database.refused.FIRST_PAUSE_SECONDS", 0.0)
    (run_id,) = insert_runs(database)
    refuse(database, run_id)
    with _dispatcher(database, redis_url) as dispatcher:
        for _ in range(3):
            dispatcher.poller.poll()
        assert len(events.of("run_refused")) == 1
        allow(database)
        assert dispatcher.poller.poll().claimed == 1


def test_claim_without_the_index_on_turns_leaves_a_refused_run_out(database: Database, redis_url: str) -> None:
    execute(database, "DROP INDEX orcheo_dispatch_pending_turns")
    ids = insert_runs(database, 10)
    refuse(database, ids[0])
    with _dispatcher(database, redis_url) as dispatcher:
        assert dispatcher.poller.poll().published == 9


def test_role_without_rights_is_not_taken_for_refused_runs(database: Database, redis_url: str, events: Events) -> None:
    insert_runs(database, 3)
    execute(database, "ALTER TABLE orcheo_dispatch.dispatch RENAME COLUMN dispatcher_id TO another")
    with _dispatcher(database, redis_url) as dispatcher:
        assert dispatcher.poller.poll().failing == ("claim",)
        assert not dispatcher.poller.poll().dispatches
    assert events.of("run_refused") == []
    assert [line["step"] for line in events.of("step_failed")] == ["claim"], "once"


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that changes rows: how three rows are made due, and how the ledger shows those that were changed."""

    due: Callable[[Database, list[str]], None]
    done: Callable[[Database, str], bool]
    table: str = _LEDGER


def _live(state: str, *, lease: str = "now() - interval '1 s'", status: str = "pending") -> Callable[..., None]:
    def make(database: Database, ids: list[str]) -> None:
        execute(
            database,
            "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot,"
            " attempts, claimed_at, begun_at, heartbeat_at, lease_expires_at, dispatcher_id, worker_id)"
            f" SELECT unnest(%s::text[]), 'w', '{WORKSPACE_ID}', 'webhook', '{state}', 1, 'held', 1, now(), now(),"
            f" now(), {lease}, gen_random_uuid(), gen_random_uuid()",
            ids,
        )
        execute(
            database,
            "UPDATE workflow_runs SET status = %s, payload = payload || jsonb_build_object('status', %s::text)"
            " WHERE id = ANY (%s)",
            status,
            status,
            ids,
        )

    return make


def _settled(slot: str, *, ago: str, outcome: str = "succeeded", status: str = "succeeded") -> Callable[..., None]:
    def make(database: Database, ids: list[str]) -> None:
        _live("running", status=status)(database, ids)
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET state = 'settled', lease_expires_at = NULL, outcome = %s, slot = %s,"
            " settled_at = now() - %s::interval",
            outcome,
            slot,
            ago,
        )

    return make


def _gone(database: Database, ids: list[str]) -> None:
    _live("running")(database, ids)
    execute(database, "DELETE FROM workflow_runs WHERE id = ANY (%s)", ids)


def _retries_due(database: Database, ids: list[str]) -> None:
    _settled("due", ago="1 min", outcome="failed", status="failed")(database, ids)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at)"
        " SELECT run_id, 1, now() - interval '1 s' FROM orcheo_dispatch.dispatch",
    )


def _cancelled_while_they_wait(database: Database, ids: list[str]) -> None:
    _settled("held", ago="1 min", outcome="requeued", status="cancelled")(database, ids)
    execute(
        database,
        "INSERT INTO orcheo_dispatch.question (run_id, checkpoint_id, interrupts)"
        " SELECT run_id, 'c', 1 FROM orcheo_dispatch.dispatch",
    )


def _pushes_lost(database: Database, ids: list[str]) -> None:
    execute(
        database,
        "UPDATE workflow_runs SET triggered_by = 'mcp', created_at = now() - interval '1 min',"
        " payload = jsonb_set(payload, '{audit_log,0,actor}', '\"manual\"') WHERE id = ANY (%s)",
        ids,
    )


_QUEUED = ("claimed", "published")


def _is(**fields: Any) -> Callable[[Database, str], bool]:
    """Return whether the row has these values; a tuple lists alternatives."""

    def look(database: Database, run_id: str) -> bool:
        if not _has_row(database, run_id):
            return False
        row = ledger(database, run_id)
        return all(row[name] in (each if isinstance(each, tuple) else (each,)) for name, each in fields.items())

    return look


def _has_row(database: Database, run_id: str) -> bool:
    return bool(everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s", run_id))


def _waits(database: Database, run_id: str) -> bool:
    return bool(everything(database, "SELECT FROM orcheo_dispatch.question WHERE run_id = %s", run_id))


def _nothing(_database: Database, _ids: list[str]) -> None: ...


_STEPS = {
    "claim": _Step(_nothing, _is(state=_QUEUED)),
    "claim again": _Step(
        _settled("held", ago="1 s", outcome="released", status="pending"), _is(state=_QUEUED, outcome=None)
    ),
    "reap": _Step(_live("running", status="running"), _is(state="settled", outcome="lost")),
    "retry": _Step(_retries_due, _is(state=_QUEUED, outcome=None)),
    "questions": _Step(_cancelled_while_they_wait, lambda database, run_id: not _waits(database, run_id)),
    "release": _Step(_live("published"), _is(state=_QUEUED, attempts=1, worker_id=None)),
    "orphans": _Step(_gone, _is(state="settled", reason="run is gone")),
    "prune": _Step(_settled("returned", ago="9 days"), lambda database, run_id: not _has_row(database, run_id)),
    "slots": _Step(_settled("due", ago="1 hour"), _is(slot="returned")),
    "adopt": _Step(
        _settled("held", ago="1 s", outcome="released", status="cancelled"), _is(outcome="cancelled", slot="returned")
    ),
    "admit": _Step(_pushes_lost, _has_row),
}
_REFUSED_IN = {"claim again": "claim"}


@pytest.fixture
def dispatcher(database: Database, redis_url: str) -> Iterator[Dispatcher]:
    with _dispatcher(database, redis_url) as made:
        yield made


def _work(dispatcher: Dispatcher) -> float:
    """Poll and keep up once; return the seconds that it took."""
    began = time.monotonic()
    dispatcher.poller.poll()
    dispatcher.upkeep.once()
    return time.monotonic() - began


@pytest.mark.parametrize("state", ["P0001", "40001", "57P01"])
@pytest.mark.parametrize("at_commit", [False, True], ids=["at once", "at commit"])
@pytest.mark.parametrize("name", _STEPS)
def test_step_leaves_out_a_run_that_is_refused(
    database: Database, dispatcher: Dispatcher, events: Events, name: str, at_commit: bool, state: str
) -> None:
    step, ids = _STEPS[name], insert_runs(database, 5)
    step.due(database, ids)
    refuse(database, ids[2], at_commit=at_commit, state=state)
    assert _work(dispatcher) < 2 * _SOON_SECONDS
    assert [step.done(database, run_id) for run_id in ids if run_id != ids[2]] == [True] * 4
    refused = {(line["step"], line["run_id"]) for line in events.of("run_refused")}
    assert (_REFUSED_IN.get(name, name), ids[2]) in refused
    assert {run_id for _, run_id in refused} == {ids[2]}


@pytest.mark.parametrize("name", ["reap", "retry", "release"])
def test_step_leaves_out_a_run_whose_row_in_the_api_table_is_refused(
    database: Database, dispatcher: Dispatcher, name: str
) -> None:
    step, ids = _STEPS[name], insert_runs(database, 5)
    step.due(database, ids)
    refuse(database, ids[2], table=_RUNS)
    _work(dispatcher)
    assert [step.done(database, run_id) for run_id in ids if run_id != ids[2]] == [True] * 4


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("claim", _RUNS),
        ("claim again", _RUNS),
        ("claim again", _LEDGER),
        ("reap", _RUNS),
        ("reap", _LEDGER),
        ("retry", _RUNS),
        ("retry", _LEDGER),
        ("retry", "orcheo_dispatch.retry"),
        ("questions", _LEDGER),
        ("questions", "orcheo_dispatch.question"),
        ("release", _RUNS),
        ("release", _LEDGER),
        ("orphans", _LEDGER),
        ("prune", _LEDGER),
        ("slots", _LEDGER),
        ("adopt", _LEDGER),
    ],
)
def test_row_that_somebody_holds_holds_up_that_run_alone(
    database: Database, dispatcher: Dispatcher, events: Events, name: str, table: str
) -> None:
    step, ids = _STEPS[name], insert_runs(database, 5)
    step.due(database, ids)
    with holding(database, ids[2], table):
        assert _work(dispatcher) < _SOON_SECONDS
        assert [step.done(database, run_id) for run_id in ids if run_id != ids[2]] == [True] * 4
        assert not step.done(database, ids[2])
    assert events.of("step_locked") == []
    # It comes back for it.
    deadline = time.monotonic() + 10
    while not step.done(database, ids[2]) and time.monotonic() < deadline:
        dispatcher.poller.poll()
        dispatcher.upkeep._round.at = float("-inf")
        dispatcher.upkeep.once()
    assert step.done(database, ids[2])


@pytest.mark.parametrize("deleted", [0, 3], ids=["existing", "deleted"])
@pytest.mark.parametrize("at_commit", [False, True], ids=["at once", "at commit"])
def test_retry_that_is_refused_holds_up_no_other(
    database: Database, dispatcher: Dispatcher, events: Events, deleted: int, at_commit: bool
) -> None:
    ids = insert_runs(database, 5)
    _retries_due(database, ids)
    execute(database, "DELETE FROM workflow_runs WHERE id = ANY (%s)", ids[:deleted])
    refuse(database, ids[0], table="orcheo_dispatch.retry", at_commit=at_commit)
    assert _work(dispatcher) < 2 * _SOON_SECONDS
    left = everything(database, "SELECT run_id FROM orcheo_dispatch.retry WHERE next_at IS NOT NULL")
    assert [row["run_id"] for row in left] == [ids[0]]
    assert {ledger(database, run_id)["state"] for run_id in ids[max(deleted, 1) :]} <= set(_QUEUED)
    assert {(line["step"], line["run_id"]) for line in events.of("run_refused")} == {("retry", ids[0])}


def test_rows_that_somebody_holds_do_not_make_polls_spin(database: Database, dispatcher: Dispatcher) -> None:
    ids = insert_runs(database, 2)
    _STEPS["claim again"].due(database, ids)
    with holding(database, ids[0]):
        delays = [dispatcher.poller.poll().next_delay for _ in range(2)]
    assert delays[-1] != 0


def test_messages_that_wait_are_extended_although_somebody_holds_a_row(
    database: Database, redis_url: str, dispatcher: Dispatcher
) -> None:
    ids = insert_runs(database, 5)
    assert dispatcher.poller.poll().published == 5
    execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
    with holding(database, ids[2]):
        assert dispatcher.poller.poll().extended == 4
    assert dispatcher.poller.poll().extended == 1
    execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
    refuse(database, ids[2])
    assert dispatcher.poller.poll().extended == 4


def test_messages_go_out_although_a_run_cannot_be_marked(
    database: Database, redis_url: str, dispatcher: Dispatcher
) -> None:
    ids = insert_runs(database, 5)
    refuse(database, ids[2], events="UPDATE")
    assert dispatcher.poller.poll().published == 5
    dispatcher.poller.finish()
    assert [ledger(database, run_id)["state"] for run_id in ids if run_id != ids[2]] == ["published"] * 4
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(find_installation(settings_for(database, redis_url)).runs) == 5


def test_trace_that_somebody_holds_is_closed_later(database: Database, dispatcher: Dispatcher) -> None:
    ids = insert_runs(database, 3)
    _STEPS["reap"].due(database, ids)
    for run_id in ids:
        execute(
            database,
            "INSERT INTO execution_history (execution_id, workflow_id, inputs, status, started_at)"
            " VALUES (%s, 'w', '{}', 'running', now())",
            run_id,
        )
    import psycopg

    def closed() -> set[str]:
        rows = everything(database, "SELECT execution_id FROM execution_history WHERE status = 'error'")
        return {row["execution_id"] for row in rows}

    with psycopg.connect(database.dsn) as session:
        session.execute("SELECT FROM execution_history WHERE execution_id = %s FOR UPDATE", (ids[1],))
        assert _work(dispatcher) < _SOON_SECONDS
        assert closed() == {ids[0], ids[2]}
        session.rollback()
    dispatcher.upkeep._round.at = float("-inf")
    dispatcher.upkeep.once()
    assert closed() == {*ids}
    assert read_run(database, ids[1])["status"] == "failed"
