"""What a worker takes: as many runs as it has room for, however many a message carries; the rest goes back."""

from __future__ import annotations

from collections import Counter
from functools import partial
from uuid import uuid4

import psycopg
import pytest
import redis

from orcheo_dispatch.dispatcher.publishing.publish import Publisher
from orcheo_dispatch.shared.broker.app import claims_of, make_app
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.messages.wire import Wire
from orcheo_dispatch.worker.run import take
from orcheo_dispatch.worker.runtime import Runtime
from orcheo_dispatch.worker.settle.settle import End, Settler
from tests.support.database.databases import Database
from tests.support.database.runs import (
    all_are,
    claim_all,
    everything,
    insert_runs,
    installation_of,
    ledger,
    nth_claim,
    settings_for,
    store_of,
    times_claimed,
)
from tests.support.processes.processes import Stack, until


def _publish(database: Database, redis_url: str, *, per_message: int) -> list[Claim]:
    """Claim all and publish them, as a dispatcher would."""
    settings = settings_for(database, redis_url)
    installation = find_installation(settings)
    app = make_app("test", settings, installation)
    with store_of(database) as (store, _):
        claims = claim_all(store, 1000)
        published, error = Publisher(app, installation).publish(claims, per_message=per_message)
        store.mark_published(published)
    app.close()
    assert error is None
    return published


def test_runs_of_one_message_execute_side_by_side(database: Database, stack: Stack, redis_url: str) -> None:
    insert_runs(database, 20, inputs={"do": "wait", "seconds": 1})
    _publish(database, redis_url, per_message=20)
    with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="20"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
    events = [line.split()[2] for line in stack.side_effects.read_text().splitlines()]
    assert events == ["begun"] * 20 + ["ended"] * 20


def test_worker_begins_no_more_than_it_has_room_for(database: Database, stack: Stack, redis_url: str) -> None:
    insert_runs(database, 9, inputs={"do": "wait", "seconds": 3600})
    claims = _publish(database, redis_url, per_message=3)
    with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="4"), redis.Redis.from_url(redis_url) as client:
        until(lambda: len(stack.noted("begun")) == 4, what="the worker is full")

        def waiting() -> Counter[str]:
            raws = client.lrange(installation_of(database).runs, 0, -1)
            return Counter(claim.run_id for raw in raws for claim in claims_of(raw))

        rest = Counter(claim.run_id for claim in claims) - Counter(stack.noted("begun"))
        until(lambda: waiting() == rest, what="the others wait in Redis, each of them once")
        assert len(stack.noted("begun")) == 4
        with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="4"):
            until(lambda: len(stack.noted("begun")) == 8, what="another worker takes them")
            until(lambda: len(waiting()) == 1, what="the last one waits")
    assert times_claimed(database) == {1}


def test_full_worker_takes_the_next_run_as_soon_as_one_ends(database: Database, stack: Stack, redis_url: str) -> None:
    """By itself Celery looks once a second whether it may take a message: two hundred would take minutes."""
    insert_runs(database, 200)
    _publish(database, redis_url, per_message=1)
    with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="1"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded", seconds=60)


def test_what_redis_gave_a_worker_as_it_became_full_goes_to_others(
    database: Database, stack: Stack, redis_url: str
) -> None:
    """A worker with room for one run waits for the next message too, until it knows that it is full."""
    full = {"ORCHEO_WORKER_CONCURRENCY": "1"}
    with stack.running("worker", **full), stack.running("worker", **full), stack.running("worker", **full):
        for _ in range(3):
            insert_runs(database, inputs={"do": "wait", "seconds": 3600})
            insert_runs(database)
        _publish(database, redis_url, per_message=1)
        until(lambda: _count(database, "running") == 3, what="three are full")
        with stack.running("worker"):
            until(lambda: _count(database, "succeeded") == 3, what="the fourth executes all others", seconds=15)


def test_claims_go_back_to_the_table_where_redis_takes_none(
    database: Database, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the processes of runs read.
    for name, value in stack.environment_of(
        "worker", ORCHEO_WORKER_EXECUTOR="tests.support.runners.executors:play"
    ).items():
        monkeypatch.setenv(name, value)
    insert_runs(database, 3, inputs={"do": "wait", "seconds": 1})
    settings = settings_for(
        database, "redis://127.0.0.1:1/0", executor="tests.support.runners.executors:play", concurrency=1
    )
    metrics = WorkerMetrics(settings, uuid4())
    installation = find_installation(settings)
    app = make_app("test", settings, installation)
    with store_of(database) as (store, _):
        claims = claim_all(store)
        runtime = Runtime(settings, installation, metrics, Wire(app, installation))
        runtime.start()
        try:
            assert [each.claim for each in take(runtime, claims)] == claims[:1]
            assert [ledger(database, claim.run_id)["outcome"] for claim in claims[1:]] == ["released"] * 2
            assert [nth_claim(claim.fence) for claim in claim_all(store)] == [2, 2]
        finally:
            runtime.stop()
            app.close()


def test_run_whose_row_is_held_holds_up_no_other(database: Database, stack: Stack, redis_url: str) -> None:
    held, *others = insert_runs(database, 5, inputs={"do": "wait", "seconds": 1})
    _publish(database, redis_url, per_message=5)
    with stack.running("worker", ORCHEO_WORKER_LEASE="60"):
        until(lambda: len(stack.noted("begun")) == 5, what="all begin")
        with psycopg.connect(database.dsn) as somebody:
            somebody.execute("SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (held,))
            until(
                lambda: [ledger(database, each)["state"] for each in others] == ["settled"] * 4,
                what="the others are settled",
            )
            assert ledger(database, held)["state"] == "running"
        until(lambda: all_are(database, "succeeded"), what="it is settled when its row is let go")


def test_held_row_holds_up_the_begin_of_no_other(database: Database, stack: Stack, redis_url: str) -> None:
    held, *others = insert_runs(database, 5)
    _publish(database, redis_url, per_message=5)
    with psycopg.connect(database.dsn) as somebody:
        somebody.execute("SELECT FROM workflow_runs WHERE id = %s FOR UPDATE", (held,))
        with stack.running("worker"):
            until(
                lambda: [ledger(database, each)["outcome"] for each in others] == ["succeeded"] * 4,
                what="the others succeeded",
            )
            somebody.rollback()
            until(lambda: all_are(database, "succeeded"), what="it begins when its row is let go")


def test_fault_of_ours_in_settling_lets_go_of_its_runs_and_of_no_others(database: Database) -> None:
    """Else heartbeats would keep them alive for ever, and nobody would reap them."""
    insert_runs(database, 2)
    metrics = WorkerMetrics(settings_for(database), uuid4())
    finished: list[End] = []
    abandoned: list[Execution] = []

    def ending_of(execution: Execution) -> Ending:
        if execution.claim == faulty:
            raise ZeroDivisionError
        return Ending.succeeded("{}")

    with store_of(database) as (store, _):
        faulty, other = claim_all(store)
        runs = [store.begin(claim, worker_id=uuid4(), lease=30) for claim in (faulty, other)]
        settler = Settler(store, metrics, ending_of=ending_of, finish=finished.extend, abandon=abandoned.extend)
        settler.start()
        for seen_to, run in enumerate(runs, start=1):
            assert isinstance(run, Run)
            execution = Execution(run, begun_at=0.0, timeout=1.0, on_stop=_never, on_ignored=_never, on_end=settler.put)
            settler.put(execution)
            # One after the other: what has ended together is written together.
            until(partial(_have_ended, finished, abandoned, seen_to), what="it is handled")
        settler.stop()
        assert [execution.claim for execution in abandoned] == [faulty]
        assert [end.execution.claim for end in finished] == [other]
        assert ledger(database, faulty.run_id)["state"] == "running"
        assert ledger(database, other.run_id)["outcome"] == "succeeded"


def _never(execution: Execution) -> None:
    raise AssertionError(execution.claim)


def _count(database: Database, status: str) -> int:
    return len(everything(database, "SELECT FROM workflow_runs WHERE status = %s", status))


def _have_ended(finished: list[End], abandoned: list[Execution], runs: int) -> bool:
    return len(finished) + len(abandoned) == runs
