"""Our three processes, for real: from a pending row to a terminal status."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import redis

from ops.real.embedded import EmbeddedPostgres
from shared.broker import make_app
from shared.slots import RunSlots
from tests.databases import Database, make_orcheo_tables, migrate
from tests.processes import Stack, until
from tests.runs import WORKSPACE_ID, everything, execute, insert_runs, ledger, read_run, settings_for


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "side-effects")


def _statuses(database: Database) -> set[str]:
    return {row["status"] for row in everything(database, "SELECT DISTINCT status FROM workflow_runs")}


def _all(database: Database, status: str) -> bool:
    return _statuses(database) == {status}


def test_pending_runs_are_executed_by_beat_dispatcher_and_worker(database: Database, stack: Stack) -> None:
    ids = insert_runs(database, 50)
    with stack.running("worker"), stack.running("dispatcher"), stack.running("beat"):
        until(lambda: _all(database, "succeeded"), what="every run succeeded")
    assert sorted(stack.noted("begun")) == sorted(ids)
    for run_id in ids:
        assert read_run(database, run_id)["payload"]["output_payload"] == {"final_state": {"body": {"name": "Ada"}}}


def test_dispatcher_without_beat_polls_by_itself_and_says_so(database: Database, stack: Stack) -> None:
    with stack.running("worker"), stack.running("dispatcher") as dispatcher:
        dispatcher.saw("beat_silent")
        insert_runs(database, 3)
        until(lambda: _all(database, "succeeded"), what="every run succeeded")
        with stack.running("beat"):
            dispatcher.saw("beat_back")


def test_runs_that_misbehave_end_in_a_status_that_orcheo_reads(database: Database, stack: Stack) -> None:
    wanted = {
        "fail": ("failed", "failed"),
        "exit": ("failed", "failed"),
        "mute": ("failed", "failed"),
        "odd": ("succeeded", "succeeded"),
    }
    runs = {do: insert_runs(database, inputs={"do": do})[0] for do in wanted}
    text = "swordfish, nul {nul} at postgresql://me:hunter2@db/x"
    (secret,) = insert_runs(database, inputs={"do": "fail", "text": text})
    (slow,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    (stubborn,) = insert_runs(database, inputs={"do": "swallow", "seconds": 20})
    with stack.running("worker", ORCHEO_WORKER_RUN_TIMEOUT="2") as worker, stack.running("dispatcher"):
        until(lambda: not _statuses(database) & {"pending", "running"}, what="every run is terminal")
    for do, (status, outcome) in wanted.items():
        assert read_run(database, runs[do])["status"] == status
        assert ledger(database, runs[do])["outcome"] == outcome
    odd = read_run(database, runs["odd"])["payload"]["output_payload"]["final_state"]
    assert (odd["nul"], odd["lone"], odd["nan"]) == ("a�b", "�", None)
    error = read_run(database, secret)["payload"]["error"]
    assert "hunter2" not in error
    assert "nul � at" in error
    for run_id in (slow, stubborn):
        assert read_run(database, run_id)["payload"]["error"] == "Run timed out after 2 s."
        assert ledger(database, run_id)["outcome"] == "timed_out"
    assert f"run_ignored_stop run_id={stubborn}" in worker.log
    assert "hunter2" not in worker.log
    # Neither inputs nor what an error quotes of them.
    assert "swordfish" not in worker.log
    assert "swordfish" in error


def test_blocked_loop_is_named_and_costs_no_lease(database: Database, stack: Stack) -> None:
    (blocker,) = insert_runs(database, inputs={"do": "block", "seconds": 5})
    (neighbour,) = insert_runs(database, inputs={"do": "wait", "seconds": 0.1})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: _all(database, "succeeded"), what="both runs succeeded")
    assert "loop_blocked" in worker.log
    assert blocker in next(line for line in worker.lines if "loop_blocked" in line)
    assert stack.noted("begun").count(neighbour) == 1


def test_runs_that_use_threads_do_not_wait_for_each_others(database: Database, stack: Stack) -> None:
    insert_runs(database, 20, inputs={"do": "meet"})
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: not _statuses(database) & {"pending", "running"}, what="every run is terminal")
    assert _all(database, "succeeded")


def test_run_cancelled_through_the_api_is_stopped_and_cleans_up(
    database: Database, stack: Stack, redis_url: str
) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "clean_up"})
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 5)
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: stack.noted("begun"), what="the run begins")
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", run_id)
        until(lambda: ledger(database, run_id)["slot"] == "returned", what="the slot comes back")
    assert stack.noted("cleaned") == [run_id]
    assert ledger(database, run_id)["outcome"] == "cancelled"
    slots = RunSlots.at(redis_url)
    assert slots.in_use(WORKSPACE_ID) == 4
    slots.close()


def test_run_of_a_killed_worker_ends_and_its_slot_comes_back(database: Database, stack: Stack, redis_url: str) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 1)
        with stack.running("dispatcher"):
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
            until(lambda: _all(database, "succeeded"), what="every run succeeded")
    assert sorted(stack.noted("begun")) == sorted(ids)
    rows = [ledger(database, run_id) for run_id in ids]
    assert {row["attempts"] for row in rows} == {1}
    assert {row["fence"] for row in rows} == {2}


def test_message_that_died_with_its_worker_is_published_again(database: Database, stack: Stack, redis_url: str) -> None:
    """Taken from the queue, never acknowledged: kombu keeps it for a day, a lease has to do."""
    (run_id,) = insert_runs(database)
    consumer = make_app("test", settings_for(database, redis_url))
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="1"):
        with consumer.connection_for_read() as connection:
            queue = connection.SimpleQueue("orcheo.runs")
            queue.get(timeout=20)
            with redis.Redis.from_url(redis_url) as client:
                assert client.hlen("orcheo.unacked") == 1
                with stack.running("worker"):
                    until(lambda: read_run(database, run_id)["status"] == "succeeded", what="the run succeeded")
                assert client.hlen("orcheo.unacked") == 1
            queue.close()
    consumer.close()
    assert ledger(database, run_id)["attempts"] == 1


def test_worker_that_cannot_renew_its_lease_stops_its_runs(
    postgres_server: EmbeddedPostgres, redis_url: str, tmp_path: Path
) -> None:
    private = Database("postgres", postgres_server.url)
    make_orcheo_tables(private, redis_url)
    migrate(private)
    stack = Stack(private, redis_url, tmp_path / "effects")
    (run_id,) = insert_runs(private, inputs={"do": "wait", "seconds": 3600})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: stack.noted("begun"), what="the run begins")
        postgres_server.kill()
        until(lambda: stack.noted("cancelled"), what="the run is stopped", seconds=20)
        assert "lease_not_renewed" in worker.log
        postgres_server.start()
        until(lambda: read_run(private, run_id)["status"] == "failed", what="the run is settled")
    assert stack.noted("begun") == [run_id]


def test_run_cancelled_before_any_claim_gives_its_slot_back(database: Database, stack: Stack, redis_url: str) -> None:
    (run_id,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET status = 'cancelled', updated_at = now() WHERE id = %s", run_id)
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 3)
        with stack.running("dispatcher"):
            until(lambda: client.get(f"orcheo:workspace:runs:{WORKSPACE_ID}") == b"2", what="the slot is back")
            until(lambda: ledger(database, run_id)["slot"] == "returned", what="the ledger says so")
    assert ledger(database, run_id)["outcome"] == "cancelled"


def test_long_queue_is_not_published_again(database: Database, stack: Stack, redis_url: str) -> None:
    insert_runs(database, 5)
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="1") as dispatcher:
        dispatcher.saw("claims_reconciled")
        line = next(line for line in dispatcher.lines if "claims_reconciled" in line)
        assert "extended=5 released=0" in line
        with redis.Redis.from_url(redis_url) as client:
            assert client.llen("orcheo.runs") == 5
    assert {row["fence"] for row in everything(database, "SELECT fence FROM orcheo_dispatch.dispatch")} == {1}


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
        dispatcher.saw("foreign_task_left_alone")
        dispatcher.saw("cron_not_dispatched")
        with redis.Redis.from_url(redis_url) as client:
            messages = client.lrange("celery", 0, -1)
            assert any(b"somebody.elses.task" in message for message in messages)
            assert not any(b"orcheo_backend.worker.tasks.execute_run" in message for message in messages)
    assert dispatcher.log.count("foreign_task_left_alone") == 1
    api.close()


def test_drained_worker_finishes_its_runs_and_exits_with_zero(database: Database, stack: Stack) -> None:
    insert_runs(database, 3, inputs={"do": "wait", "seconds": 2})
    with stack.running("worker") as worker, stack.running("dispatcher"):
        until(lambda: len(stack.noted("begun")) == 3, what="all runs begin")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert _all(database, "succeeded")
    assert everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'worker'") == []


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_second_signal_stops_the_runs_now(database: Database, stack: Stack, pool: str) -> None:
    insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="3600", ORCHEO_WORKER_POOL=pool) as worker,
    ):
        until(lambda: stack.noted("begun"), what="the run begins")
        worker.signal(signal.SIGTERM)
        worker.saw("drain_begun")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert _all(database, "failed")


@pytest.mark.parametrize(("policy", "status"), [("fail", "failed"), ("requeue", "pending"), ("hold", "running")])
def test_drain_that_takes_too_long_settles_by_the_lost_run_policy(
    database: Database, stack: Stack, policy: str, status: str
) -> None:
    insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    with stack.running("dispatcher") as dispatcher:
        with stack.running("worker", ORCHEO_WORKER_DRAIN_TIMEOUT="1", ORCHEO_DISPATCH_LOST_RUNS=policy) as worker:
            until(lambda: stack.noted("begun"), what="the run begins")
            dispatcher.signal(signal.SIGTERM)
            assert dispatcher.exit_code() == 0
            worker.signal(signal.SIGTERM)
            assert worker.exit_code() == 0
    assert _all(database, status)


def test_prefork_worker_executes_drains_and_is_known(database: Database, stack: Stack) -> None:
    insert_runs(database, 6)
    with (
        stack.running("dispatcher"),
        stack.running("worker", ORCHEO_WORKER_POOL="prefork", ORCHEO_WORKER_CONCURRENCY="2") as worker,
    ):
        until(lambda: _all(database, "succeeded"), what="every run succeeded")
        assert len(everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'worker'")) == 2
        insert_runs(database, 2, inputs={"do": "wait", "seconds": 2})
        until(lambda: len(stack.noted("begun")) == 8, what="both waiting runs begin")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert _all(database, "succeeded")


def test_malformed_messages_do_nothing_but_warn(database: Database, stack: Stack, redis_url: str) -> None:
    from celery import Celery

    (run_id,) = insert_runs(database)
    forger = Celery("forger", broker=redis_url, set_as_current=False)
    with stack.running("worker") as worker:
        for arguments in ([run_id], [run_id, "1"], [run_id, 1, 2], [None, 1], [run_id, -1], [{"a": "hunter2"}, 1]):
            forger.send_task("orcheo_dispatch.execute_run", args=arguments, queue="orcheo.runs")
        forger.send_task("orcheo_dispatch.execute_run", args=(run_id, 7), queue="orcheo.runs")
        worker.saw("reason=stale")
        until(lambda: worker.log.count("malformed_message") == 6, what="six warnings")
    assert "hunter2" not in worker.log
    assert read_run(database, run_id)["status"] == "pending"
    forger.close()
