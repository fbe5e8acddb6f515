"""Answers of Redis that never get better are told from an outage: in the log, on /readyz, and by `check`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.broker.app import broker_errors, connect, make_app, probe_writing
from orcheo_dispatch.shared.broker.faults import Fault, classify
from orcheo_dispatch.shared.consumer.channel import Channel
from orcheo_dispatch.shared.consumer.intake import PoolIntake
from orcheo_dispatch.shared.errors import BrokerError
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs, installation_of, settings_for
from tests.support.processes.processes import Process, Stack, until

_PASSWORD = "only-for-tests"


@pytest.fixture
def chief(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A connection that may do all, whatever becomes of the others."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def stack(database: Database, redis_server: EmbeddedRedis, tmp_path: Path) -> Stack:
    return Stack(database, redis_server.url, tmp_path / "side-effects")


def _deny(chief: Any, queue: str) -> Callable[[], object]:
    chief.execute_command("ACL", "SETUSER", "default", "-lpush", "-rpush")
    return lambda: chief.execute_command("ACL", "SETUSER", "default", "+@all")


def _occupy(chief: redis.Redis, queue: str) -> Callable[[], object]:
    chief.set(queue, "somebody's")
    return lambda: chief.delete(queue)


def _fill(chief: redis.Redis, queue: str) -> Callable[[], object]:
    chief.config_set("maxmemory", "1")
    return lambda: chief.config_set("maxmemory", "0")


def _break_disk(chief: redis.Redis, queue: str) -> Callable[[], object]:
    chief.config_set("min-replicas-to-write", "1")
    return lambda: chief.config_set("min-replicas-to-write", "0")


@contextmanager
def _broken(how: Callable[[redis.Redis, str], Callable[[], object]], chief: redis.Redis, queue: str) -> Iterator[None]:
    mend = how(chief, queue)
    try:
        yield
    finally:
        mend()


_FAULTS = [
    pytest.param(_deny, Fault.REFUSED, "no permissions", id="NOPERM"),
    pytest.param(_occupy, Fault.REFUSED, "WRONGTYPE", id="WRONGTYPE"),
    pytest.param(_fill, Fault.FULL, "maxmemory", id="OOM"),
    pytest.param(_break_disk, Fault.FULL, "NOREPLICAS", id="NOREPLICAS"),
]


def _readiness(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            body: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        body = error.read().decode()
    why: str = next(each["why"] for each in json.loads(body)["checks"] if each["name"] == "broker")
    return why


@pytest.mark.parametrize(("how", "fault", "says"), _FAULTS)
def test_dispatcher_says_what_redis_refuses_and_recovers(
    database: Database,
    stack: Stack,
    chief: redis.Redis,
    how: Callable[[redis.Redis, str], Callable[[], object]],
    fault: Fault,
    says: str,
) -> None:
    port = free_port()
    with stack.running("dispatcher", ORCHEO_HEALTH_PORT=str(port)) as dispatcher:
        until(lambda: _readiness(port) == "Redis answers", what="the dispatcher is ready")
        with _broken(how, chief, installation_of(database).runs):
            insert_runs(database, 3)
            dispatcher.saw("broker_unavailable role=publisher")
            line = next(line for line in dispatcher.lines if "broker_unavailable role=publisher" in line)
            assert f"fault={fault.value}" in line
            assert says in line
            until(lambda: says in _readiness(port), what="readiness says so")
            # Not once per retry, nor as if it came and went.
            until(lambda: _polls(dispatcher, port) > 3, what="some more polls")
            assert dispatcher.log.count("broker_unavailable role=publisher") == 1
            assert "broker_reconnected role=publisher" not in dispatcher.log
        with stack.running("worker"):
            until(lambda: all_are(database, "succeeded"), what="every run succeeded")
        dispatcher.saw("broker_reconnected role=publisher")
        until(lambda: _readiness(port) == "Redis answers", what="the dispatcher is ready again")


def _polls(dispatcher: Process, port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith('orcheo_dispatch_polls_total{result="broker_away"}')]
    return float(line.split()[-1])


@pytest.mark.parametrize(("how", "fault", "says"), _FAULTS)
def test_check_finds_what_redis_refuses(
    database: Database,
    stack: Stack,
    chief: redis.Redis,
    how: Callable[[redis.Redis, str], Callable[[], object]],
    fault: Fault,
    says: str,
) -> None:
    with _broken(how, chief, installation_of(database).runs), stack.command("check", "--json") as check:
        assert check.exit_code() == 4
        check.finish()
    (found,) = [each for each in json.loads(check.log) if each["grade"] == "wrong"]
    assert says in found["found"]


@pytest.mark.parametrize(("how", "fault", "says"), _FAULTS)
def test_each_way_to_ask_is_told_the_same(
    database: Database,
    redis_server: EmbeddedRedis,
    chief: redis.Redis,
    how: Callable[[redis.Redis, str], Callable[[], object]],
    fault: Fault,
    says: str,
) -> None:
    """A command, a transaction and a script."""
    queue = installation_of(database).runs
    with _broken(how, chief, queue), connect(redis_server.url) as client:
        script = client.register_script("return redis.call('LPUSH', KEYS[1], 'x')")
        for ask in (
            lambda: client.lpush(queue, "x"),
            lambda: probe_writing(client, queue),
            lambda: script(keys=[queue]),
        ):
            with pytest.raises(BrokerError) as raised, broker_errors():
                ask()
            assert classify(raised.value) is fault


def test_password_and_number_of_the_database_are_refused_and_an_outage_is_none(redis_server: EmbeddedRedis) -> None:
    def fault_of(url: str) -> Fault:
        with pytest.raises(BrokerError) as raised, broker_errors(), connect(url) as client:
            client.ping()
        return classify(raised.value)

    address = redis_server.url.partition("//")[2].rpartition("/")[0]
    assert fault_of(f"redis://{address}/999") is Fault.REFUSED
    assert fault_of(f"redis://me:wrong@{address}/0") is Fault.REFUSED
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("requirepass", _PASSWORD)
    assert fault_of(redis_server.url) is Fault.REFUSED
    redis_server.kill()
    assert fault_of(redis_server.url) is Fault.UNAVAILABLE


@pytest.mark.parametrize("kind", ["beat", "dispatcher", "worker"])
def test_process_says_that_the_number_of_the_database_is_refused(stack: Stack, kind: str) -> None:
    url = stack.environment["REDIS_URL"].rpartition("/")[0] + "/999"
    with stack.running(kind, REDIS_URL=url) as process:
        process.saw("fault=refused")
        assert "DB index" in process.log


class _Everything:
    """A consumer that takes each message."""

    intake = PoolIntake()

    def may_take(self) -> bool:
        """Take it."""
        return True


@pytest.mark.parametrize("away", [False, True], ids=["Redis is there", "Redis is killed"])
def test_message_in_hand_goes_back_or_is_left_to_its_lease(
    database: Database, redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture, away: bool
) -> None:
    installation = installation_of(database)
    app = make_app("test", settings_for(database, redis_server.url), installation)
    with caplog.at_level("ERROR"), app.connection_for_read() as connection:
        connection.transport.Channel = partial(Channel, _Everything())
        queue = connection.SimpleQueue(installation.runs)
        queue.put({"of": "a message"})
        queue.get(timeout=10)
        if away:
            redis_server.kill()
        connection.close()
    app.close()
    if away:
        redis_server.start()
    assert caplog.records == [], "nothing is dumped"
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.llen(installation.runs) == (0 if away else 1)


@pytest.mark.parametrize("how", [_deny, _occupy, _fill, _break_disk])
def test_message_in_hand_that_redis_refuses_is_not_printed(
    database: Database,
    redis_server: EmbeddedRedis,
    chief: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    how: Callable[[redis.Redis, str], Callable[[], object]],
) -> None:
    installation = installation_of(database)
    app = make_app("test", settings_for(database, redis_server.url), installation)
    with caplog.at_level("ERROR"), app.connection_for_read() as connection:
        connection.transport.Channel = partial(Channel, _Everything())
        queue = connection.SimpleQueue(installation.runs)
        queue.put({"of": "a message"})
        queue.get(timeout=10)
        with _broken(how, chief, installation.runs):
            connection.close()
    app.close()
    assert caplog.records == []
    assert chief.llen(installation.runs) == 0


def test_messages_in_hand_go_back_before_later_ones_in_their_order(
    database: Database, redis_server: EmbeddedRedis
) -> None:
    installation = installation_of(database)
    app = make_app("test", settings_for(database, redis_server.url), installation)
    with app.connection_for_read() as connection:
        connection.transport.Channel = partial(Channel, _Everything())
        queue = connection.SimpleQueue(installation.runs)
        for number in range(6):
            queue.put(number)
        queue.get(timeout=10).ack()
        queue.get(timeout=10).requeue()
        assert [queue.get(timeout=10).payload for _ in range(2)] == [1, 2]
        connection.close()
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(installation.runs)
        assert [queue.get(timeout=10).payload for _ in range(5)] == [1, 2, 3, 4, 5]
    app.close()
