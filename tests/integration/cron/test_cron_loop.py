"""When cron triggers are dispatched: by a message of Beat, and without Beat, Redis or free run slots all the same."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.cron.report import CronReport
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs, read_run
from tests.support.processes.processes import Stack, until
from tests.support.servers.apis import listening, response

INTERVAL = "1"
INSTALLATION = Installation("test")
CRON_QUEUE = INSTALLATION.cron


@pytest.fixture
def cron_stack(stack: Stack, tmp_path: Path) -> Stack:
    """Processes whose workers note each dispatch of cron triggers."""
    stack.environment |= {
        "ORCHEO_WORKER_EXECUTOR": "tests.support.runners.executors:Cron",
        "ORCHEO_CRON_INTERVAL": INTERVAL,
        "ORCHEO_DISPATCH_NAMESPACE": INSTALLATION.name,
        "TEST_CRON": str(tmp_path / "cron"),
    }
    return stack


def _dispatches(stack: Stack) -> list[str]:
    path = Path(stack.environment["TEST_CRON"])
    return path.read_text().split() if path.exists() else []


def _more(stack: Stack, count: int = 3) -> None:
    before = len(_dispatches(stack))
    until(lambda: len(_dispatches(stack)) >= before + count, what="cron goes on")


def test_messages_of_beat_do_not_pile_up_and_reach_a_worker_when_one_comes(cron_stack: Stack, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client, cron_stack.running("beat", ORCHEO_CRON_INTERVAL="1") as beat:
        until(lambda: client.llen(CRON_QUEUE) == 1, what="the first message")
        # As many ticks as are left to wait, which takes several cron intervals.
        until(lambda: client.llen(INSTALLATION.dispatch) == 10, what="ticks wait")
        assert client.llen(CRON_QUEUE) == 1
        assert "cron=worker" in beat.log
        # It would wait two days to look by itself.
        with cron_stack.running("worker", ORCHEO_CRON_INTERVAL="86400"):
            _more(cron_stack)
            assert client.llen(CRON_QUEUE) <= 1
            beat.signal(signal.SIGSTOP)
            until(lambda: client.llen(CRON_QUEUE) == 0, what="the queue is empty")
            beat.signal(signal.SIGCONT)


@pytest.mark.parametrize("mode", ["off", "api"])
def test_worker_takes_no_message_where_cron_is_not_its_task(
    database: Database, cron_stack: Stack, redis_url: str, mode: str
) -> None:
    variables = {"ORCHEO_DISPATCH_CRON": mode, "ORCHEO_API_URL": "http://127.0.0.1:1"}
    insert_runs(database)
    with redis.Redis.from_url(redis_url) as client:
        client.lpush(CRON_QUEUE, "a message")
        with cron_stack.running("worker", **variables), cron_stack.running("dispatcher"):
            until(lambda: all_are(database, "succeeded"), what="the worker is at work")
        assert client.llen(CRON_QUEUE) == 1
    assert _dispatches(cron_stack) == []


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_worker_dispatches_by_itself_without_beat(cron_stack: Stack, isolation: str) -> None:
    with cron_stack.running("worker", ORCHEO_WORKER_ISOLATION=isolation, ORCHEO_WORKER_CONCURRENCY="2") as worker:
        _more(cron_stack, 4)
        worker.saw("cron_dispatched runs=1 by_itself=True")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0


def test_many_workers_without_beat_dispatch_no_more_often_than_one(cron_stack: Stack) -> None:
    workers, rounds = 4, 5
    with ExitStack() as stack:
        started = [cron_stack.command("worker") for _ in range(workers)]
        for worker in started:
            stack.enter_context(worker)
        for worker in started:
            worker.saw("worker_started")
        began = time.monotonic()
        _more(cron_stack, rounds)
        # Each by itself would take a quarter of an interval for a dispatch.
        assert time.monotonic() - began >= (rounds - 1) * 0.9 * float(INTERVAL)


def test_turn_is_one_process_s_until_it_expires_or_is_left(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        one, other = (CronRecord(client, INSTALLATION.cron_record) for _ in range(2))
        assert (one.take_turn(60), other.take_turn(60), one.take_turn(60)) == (True, False, False)
        one.leave_turn()
        assert other.take_turn(0.001)
        until(lambda: one.take_turn(60), what="the turn expires")


def test_full_run_slots_and_a_blocked_loop_do_not_stop_cron(database: Database, cron_stack: Stack) -> None:
    (waiting,) = insert_runs(database, inputs={"do": "wait", "seconds": 60})
    with cron_stack.running("dispatcher"), cron_stack.running("worker", ORCHEO_WORKER_CONCURRENCY="2") as worker:
        until(lambda: cron_stack.noted("begun") == [waiting], what="one run holds a slot")
        (blocking,) = insert_runs(database, inputs={"do": "block", "seconds": 60})
        until(lambda: len(cron_stack.noted("begun")) == 2, what="the other run holds the other slot")
        worker.saw("loop_blocked")
        _more(cron_stack)
        assert cron_stack.noted("ended") == []
        assert {read_run(database, run)["status"] for run in (waiting, blocking)} == {"running"}


def test_cron_goes_on_while_redis_is_unavailable_and_after(
    database: Database, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    stack = Stack(database, redis_server.url, tmp_path / "side-effects")
    stack.environment |= {
        "ORCHEO_WORKER_EXECUTOR": "tests.support.runners.executors:Cron",
        "ORCHEO_CRON_INTERVAL": INTERVAL,
        "ORCHEO_DISPATCH_NAMESPACE": INSTALLATION.name,
        "TEST_CRON": str(tmp_path / "cron"),
    }
    with stack.running("worker") as worker, stack.running("beat"):
        _more(stack)
        redis_server.kill()
        worker.saw("broker_unavailable")
        _more(stack)
        redis_server.start()
        worker.saw("broker_reconnected")
        _more(stack)
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0


def test_failure_is_logged_once_without_what_it_quotes(cron_stack: Stack) -> None:
    with cron_stack.running("worker", TEST_CRON_FAILS="swordfish") as worker:
        _more(cron_stack, 4)
        worker.saw("cron_not_dispatched outcome=failed")
    assert worker.log.count("cron_not_dispatched") == 1
    assert "swordfish" not in worker.log


def test_installations_on_one_redis_ask_their_own_workers(cron_stack: Stack, redis_url: str) -> None:
    other = Installation("other")
    with redis.Redis.from_url(redis_url) as client:
        with cron_stack.running("beat", ORCHEO_DISPATCH_NAMESPACE=other.name):
            until(lambda: client.llen(other.cron) == 1, what="a message for the other")
            with cron_stack.running("worker", ORCHEO_CRON_INTERVAL="86400") as worker:
                worker.saw("by_itself=True")
                until(lambda: client.llen(other.dispatch) == 10, what="ticks wait")
        assert (client.llen(other.cron), client.llen(CRON_QUEUE)) == (1, 0)
        assert CronRecord(client, other.cron_record).success() is None
    assert len(_dispatches(cron_stack)) == 1


def test_executor_that_cannot_dispatch_cron_says_so_once(cron_stack: Stack) -> None:
    with cron_stack.running("worker", ORCHEO_WORKER_EXECUTOR="tests.support.runners.executors:play") as worker:
        worker.saw("cron_unavailable executor=tests.support.runners.executors:play")
    assert worker.log.count("cron_unavailable") == 1
    assert "ORCHEO_DISPATCH_CRON=api and ORCHEO_API_URL" in worker.log


def test_dispatcher_asks_the_api_also_without_beat_and_says_what_fails(stack: Stack) -> None:
    token = "only-for-tests-service-token"
    with listening(response("401 Unauthorized")) as api:
        variables = {
            "ORCHEO_DISPATCH_CRON": "api",
            "ORCHEO_API_URL": api.url,
            "ORCHEO_SERVICE_TOKEN": token,
            "ORCHEO_CRON_INTERVAL": INTERVAL,
            "ORCHEO_HEALTH_PORT": "0",
        }
        with stack.running("dispatcher", **variables) as dispatcher:
            dispatcher.saw("cron_not_dispatched outcome=unauthorized")
            # Stock Beat's message and a tick of Beat's for cron ask for no more: it is too early.
            assert len(api.requests) == 1
        assert token not in dispatcher.log
        api.answer = response("200 OK", b"[{}]")
        with stack.running("dispatcher", **variables) as dispatcher:
            dispatcher.saw("cron_dispatched runs=1 by_itself=True")
            until(lambda: len(api.requests) >= 4, what="it asks each interval")
    assert all(f"Bearer {token}".encode() in request for request in api.requests)


def test_beat_has_the_dispatcher_ask_the_api(stack: Stack) -> None:
    with listening(response("200 OK", b"[{}]")) as api:
        stack.environment |= {"ORCHEO_DISPATCH_CRON": "api", "ORCHEO_API_URL": api.url, "ORCHEO_CRON_INTERVAL": "1"}
        with stack.running("beat"), stack.running("dispatcher", ORCHEO_CRON_INTERVAL="86400") as dispatcher:
            dispatcher.saw("by_itself=False")
            until(lambda: len(api.requests) >= 3, what="it asks each interval of Beat's")


def test_record_tells_the_age_by_redis_and_survives_what_others_write(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        record = CronRecord(client, INSTALLATION.cron_record)
        assert (record.success(), record.failure()) == (None, None)
        record.note(CronReport("busy"), by_itself=True)
        assert record.success() is None
        record.note(CronReport("succeeded", runs=3), by_itself=True)
        record.note(CronReport("unreachable", reason="no answer"), by_itself=False)
        seen, failed = record.success(), record.failure()
        assert seen is not None
        assert failed is not None
        assert (0 <= seen.age < 5, seen.by_itself, failed.by_itself) == (True, True, False)
        assert (failed.outcome, failed.reason) == ("unreachable", "no answer")
        client.expire(f"{INSTALLATION.cron_record}.success", 86_400 - 300)
        seen = record.success()
        assert seen is not None
        assert 299 <= seen.age < 305
        for written in ("", "[]", "{}", '{"host": 1}', "\xff", "[" * 50_000):
            client.set(f"{INSTALLATION.cron_record}.success", written)
            assert record.success() is None
