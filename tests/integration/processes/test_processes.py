"""Our three processes, for real: from a pending row to a terminal status."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from orcheo_dispatch.shared.broker.app import make_app
from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process, ticked_elsewhere
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.refusals import meddle
from tests.support.database.runs import (
    WORKSPACE_ID,
    all_are,
    everything,
    execute,
    insert_runs,
    installation_of,
    ledger,
    nth_claim,
    read_run,
    settings_for,
    store_of,
    times_claimed,
)
from tests.support.processes.processes import Stack, until

_PUBLISHED = "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'published'"
_AGE = "UPDATE orcheo_dispatch.process SET seen_at = now() - interval '1 hour' WHERE seen_at > now() + interval '1 min'"


def test_pending_runs_are_executed_by_beat_dispatcher_and_worker(database: Database, stack: Stack) -> None:
    ids = insert_runs(database, 50)
    with stack.running("worker"), stack.running("dispatcher"), stack.running("beat"):
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
    assert sorted(stack.noted("begun")) == sorted(ids)
    for run_id in ids:
        assert read_run(database, run_id)["payload"]["output_payload"] == {"final_state": {"body": {"name": "Ada"}}}


def test_dispatcher_without_beat_polls_by_itself_and_says_so(database: Database, stack: Stack) -> None:
    with stack.running("worker"), stack.running("dispatcher") as dispatcher:
        dispatcher.saw("beat_silent")
        insert_runs(database, 3)
        until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        with stack.running("beat"):
            dispatcher.saw("beat_recovered")


def test_ticks_that_reach_other_dispatchers_are_no_silence(database: Database, stack: Stack) -> None:
    """Each tick reaches one of them: with many dispatchers most hear of Beat by the ledger alone."""
    with store_of(database) as (_, engine):
        other, beat = Process(ProcessKind.DISPATCHER), Process(ProcessKind.BEAT)
        mine = Process(ProcessKind.DISPATCHER)
        beat.seen(engine)
        mine.seen(engine)
        assert not ticked_elsewhere(engine, mine, seconds=60), "it was this one that was ticked"
        other.seen(engine)
        assert ticked_elsewhere(engine, mine, seconds=60)
        execute(database, "UPDATE orcheo_dispatch.process SET seen_at = now() + interval '1 hour'")
        with stack.running("dispatcher") as dispatcher:
            insert_runs(database, 1)
            until(lambda: everything(database, "SELECT FROM orcheo_dispatch.dispatch"), what="it polls by itself")
            assert "beat_silent" not in dispatcher.log
            execute(database, _AGE)
            dispatcher.saw("beat_silent")


def test_run_of_a_killed_worker_ends_and_its_slot_comes_back(database: Database, stack: Stack, redis_url: str) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 1)
        with stack.running("dispatcher", ORCHEO_DISPATCH_LOST_RUNS="fail"):
            with stack.running("worker") as worker:
                until(lambda: stack.noted("begun"), what="the run begins")
                worker.signal_group(signal.SIGKILL)
            until(lambda: read_run(database, run_id)["status"] == "failed", what="the run is reaped", seconds=15)
            assert read_run(database, run_id)["payload"]["error"].startswith("Worker lost")
            until(
                lambda: client.get(f"orcheo:workspace:runs:{WORKSPACE_ID}") is None, what="the slot is back", seconds=80
            )


def test_redis_flushed_between_publish_and_begin_delays_runs_and_loses_none(
    database: Database, stack: Stack, redis_url: str
) -> None:
    ids = insert_runs(database, 20)
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="5") as dispatcher:
        until(
            lambda: len(everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'published'")) == 20,
            what="all are published",
        )
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        dispatcher.saw("claims_reconciled")
        with stack.running("worker"):
            until(lambda: all_are(database, "succeeded"), what="every run succeeded")
    assert sorted(stack.noted("begun")) == sorted(ids)
    rows = [ledger(database, run_id) for run_id in ids]
    assert {row["attempts"] for row in rows} == {1}
    assert {nth_claim(row["fence"]) for row in rows} == {2}


@pytest.mark.parametrize("release", ["this", "last"])
def test_message_that_died_with_its_worker_is_published_again(
    database: Database, stack: Stack, redis_url: str, release: str
) -> None:
    """Taken from the queue, never acknowledged. Only consumers of the last release leave a copy in Redis."""
    (run_id,) = insert_runs(database)
    installation = installation_of(database)
    consumer = make_app("test", settings_for(database, redis_url), installation)
    if release == "last":
        consumer.conf.broker_transport_options |= {"ack_emulation": True, "unacked_key": installation.unacked}
    # Longer than a worker takes to start: it waits for the second message, and has all of the lease to begin.
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="6"):
        with consumer.connection_for_read() as connection:
            queue = connection.SimpleQueue(installation.runs)
            queue.get(timeout=20)
            with redis.Redis.from_url(redis_url) as client:
                copies = 1 if release == "last" else 0
                assert client.hlen(installation.unacked) == copies
                with stack.running("worker"):
                    until(lambda: read_run(database, run_id)["status"] == "succeeded", what="the run succeeded")
                assert client.hlen(installation.unacked) == copies
            queue.close()
    consumer.close()
    row = ledger(database, run_id)
    assert (row["attempts"], nth_claim(row["fence"])) == (1, 2)


def test_message_goes_back_to_its_queue_when_its_consumer_stops(
    database: Database, stack: Stack, redis_url: str
) -> None:
    (run_id,) = insert_runs(database)
    installation = installation_of(database)
    consumer = make_app("test", settings_for(database, redis_url), installation)
    with stack.running("dispatcher"):
        with consumer.connection_for_read() as connection:
            queue = connection.SimpleQueue(installation.runs)
            queue.get(timeout=20)
            with redis.Redis.from_url(redis_url) as client:
                assert client.llen(installation.runs) == 0
                connection.close()
                assert client.llen(installation.runs) == 1
        with stack.running("worker"):
            until(lambda: read_run(database, run_id)["status"] == "succeeded", what="the run succeeded")
    consumer.close()
    assert nth_claim(ledger(database, run_id)["fence"]) == 1


def test_worker_that_cannot_renew_its_lease_stops_its_runs(
    postgres_server: EmbeddedPostgres, redis_url: str, tmp_path: Path
) -> None:
    private = Database("postgres", postgres_server.url)
    make_orcheo_tables(private, redis_url)
    migrate(private)
    stack = Stack(private, redis_url, tmp_path / "effects")
    stack.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    (run_id,) = insert_runs(private, inputs={"do": "wait", "seconds": 3600})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: stack.noted("begun"), what="the run begins")
        postgres_server.kill()
        until(lambda: stack.noted("cancelled"), what="the run is stopped", seconds=20)
        worker.saw("lease_not_renewed")
        postgres_server.start()
        until(lambda: read_run(private, run_id)["status"] == "failed", what="the run is settled")
    assert stack.noted("begun") == [run_id]


def test_worker_stops_a_run_whose_fence_has_moved(database: Database, stack: Stack) -> None:
    """Its heartbeat says so: the lease is not over, and nobody has cancelled."""
    lost, kept = insert_runs(database, 2, inputs={"do": "wait", "seconds": 4})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 2, what="the runs begin")
        execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = fence + 1 WHERE run_id = %s", lost)
        until(lambda: stack.noted("cancelled"), what="the run is stopped", seconds=3)
        worker.saw("run_not_settled")
        until(lambda: read_run(database, kept)["status"] == "succeeded", what="its neighbour ends")
        assert "lease_not_renewed" not in worker.log
    assert stack.noted("cancelled") == [lost]
    assert "run_lost" in worker.log


def test_paused_worker_stops_and_writes_nothing_when_it_comes_back(database: Database, stack: Stack) -> None:
    stack.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: stack.noted("begun"), what="the run begins")
        worker.signal_group(signal.SIGSTOP)
        until(lambda: read_run(database, run_id)["status"] == "failed", what="the run is reaped")
        reaped = read_run(database, run_id), ledger(database, run_id)["fence"]
        worker.signal_group(signal.SIGCONT)
        until(lambda: stack.noted("cancelled"), what="the run is stopped", seconds=5)
        worker.saw("run_not_settled")
    assert (read_run(database, run_id), ledger(database, run_id)["fence"]) == reaped


def test_run_of_a_worker_that_was_paused_in_a_transaction_is_reaped(database: Database, stack: Stack) -> None:
    """The transaction is ours: it ends by the limit of our sessions, and its lock on the run with it."""
    stack.environment |= {"ORCHEO_DISPATCH_LOST_RUNS": "fail"}
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with (
        stack.running("worker") as worker,
        stack.running("dispatcher"),
        open_engine(settings_for(database), role="test", connections=1) as engine,
        engine.connect() as paused,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        paused.execute(
            text("SELECT FROM orcheo_dispatch.dispatch WHERE run_id = :run_id FOR UPDATE"), {"run_id": run_id}
        )
        worker.signal_group(signal.SIGKILL)
        until(lambda: read_run(database, run_id)["status"] == "failed", what="the run is reaped", seconds=30)
        paused.invalidate()


def test_run_whose_begin_is_answered_after_its_lease_is_not_executed(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database)
    meddle(database, run_id, condition="NEW.status = 'running'", body="PERFORM pg_sleep(1.5);")
    with stack.running("dispatcher"), stack.running("worker", ORCHEO_WORKER_LEASE="1") as worker:
        worker.saw("lease_not_renewed")
        until(lambda: read_run(database, run_id)["status"] == "failed", what="the run is settled or reaped")
    assert stack.noted("begun") == []


def test_long_queue_is_not_published_again(database: Database, stack: Stack, redis_url: str) -> None:
    insert_runs(database, 5)
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="1") as dispatcher:
        dispatcher.saw("claims_reconciled")
        line = next(line for line in dispatcher.lines if "claims_reconciled" in line)
        assert "extended=5 released=0" in line
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen(installation_of(database).runs) == 5
    assert times_claimed(database) == {1}


def test_hints_of_the_api_are_taken_and_wake_the_dispatcher(database: Database, stack: Stack, redis_url: str) -> None:
    from celery import Celery

    api = Celery("orcheo-backend", broker=redis_url, set_as_current=False)
    with stack.running("dispatcher", ORCHEO_DISPATCH_POLL_INTERVAL="600") as dispatcher:
        until(
            lambda: everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'dispatcher'"),
            what="the first poll",
        )
        (run_id,) = insert_runs(database)
        for _ in range(3):
            api.send_task("orcheo_backend.worker.tasks.execute_run", args=(run_id,), queue="celery")
        until(lambda: everything(database, "SELECT FROM orcheo_dispatch.dispatch"), what="the run is claimed")
        api.send_task("somebody.elses.task", queue="celery")
        api.send_task("orcheo_backend.worker.tasks.dispatch_cron_triggers", queue="celery")
        dispatcher.saw("foreign_task_ignored")
        with redis.Redis.from_url(redis_url) as client:
            until(
                lambda: client.llen(installation_of(database).cron) == 1,
                what="a worker is asked to dispatch cron triggers",
            )
            messages = client.lrange("celery", 0, -1)
            assert any(b"somebody.elses.task" in message for message in messages)
            assert not any(b"orcheo_backend.worker.tasks.execute_run" in message for message in messages)
    assert dispatcher.log.count("foreign_task_ignored") == 1
    api.close()
