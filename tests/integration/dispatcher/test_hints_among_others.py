"""Queue `celery` is shared: other applications' messages keep place and order, other installations' pushes stay."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched

import pytest
import redis

from orcheo_dispatch.dispatcher.wakeups import foreign
from orcheo_dispatch.dispatcher.wakeups.hints import CRON_HINT, RUN_HINT, HintListener
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.sweep import Sweep
from orcheo_dispatch.shared.ledger.model import Push
from tests.support.processes.processes import until

_INTERVAL_SECONDS = 0.05


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


class Runs:
    """Notes the runs that a listener calls back for; some are in our table."""

    def __init__(self, *ours: str) -> None:
        self.ours = set(ours)
        self.asked: list[str] = []
        self.crons = 0

    def pushed(self, pushes: Sequence[Push]) -> dict[Push, bool]:
        self.asked += [push.run_id for push in pushes]
        return {push: push.run_id in self.ours for push in pushes}

    def cron(self) -> None:
        self.crons += 1


@contextmanager
def listening(redis_url: str, runs: Runs) -> Iterator[HintListener]:
    client = connect(redis_url)
    listener = HintListener(client, on_pushes=runs.pushed, on_cron=runs.cron, interval=_INTERVAL_SECONDS)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        client.close()


def push(run_id: str) -> bytes:
    body = base64.b64encode(json.dumps([[run_id], {}, {}]).encode()).decode()
    headers = {"task": RUN_HINT, "workspace_id": "w"}
    return json.dumps({"body": body, "headers": headers, "properties": {"body_encoding": "base64"}}).encode()


def foreign_message(n: int) -> bytes:
    """A task of another application; one that names Orcheo's without being it."""
    note = RUN_HINT if n % 1000 == 0 else "x" * 200
    return json.dumps({"body": note, "headers": {"task": "other.app", "id": n}, "properties": {}}).encode()


def send(client: redis.Redis, messages: Iterable[bytes]) -> None:
    for some in batched(messages, 5000):
        client.lpush("celery", *some)


def waiting(client: redis.Redis) -> list[bytes]:
    """Return what waits, in the order in which a consumer gets it."""
    messages: list[bytes] = client.lrange("celery", 0, -1)  # type: ignore[assignment]
    return messages[::-1]


def test_push_behind_a_foreign_backlog_is_found_and_the_backlog_left_as_it_was(
    client: redis.Redis, redis_url: str
) -> None:
    backlog = [foreign_message(n) for n in range(100_000)]
    send(client, backlog)
    runs = Runs("first", "second")
    with listening(redis_url, runs):
        for run_id in ("first", "second"):
            send(client, [push(run_id)])
            until(lambda run_id=run_id: run_id in runs.asked, what="the push was seen", seconds=20)  # type: ignore[misc]
        until(lambda: client.llen("celery") == len(backlog), what="the pushes were taken out")
    assert waiting(client) == backlog
    assert runs.asked == ["first", "second"]


def test_pushes_buried_in_a_backlog_are_found(client: redis.Redis, redis_url: str) -> None:
    backlog = [foreign_message(n) for n in range(6000)]
    ours = [f"run-{n}" for n in range(300)]
    send(client, [*backlog[:3000], *map(push, ours), json.dumps({"headers": {"task": CRON_HINT}}).encode()])
    send(client, backlog[3000:])
    runs = Runs(*ours)
    with listening(redis_url, runs):
        until(lambda: client.llen("celery") == len(backlog), what="the pushes were taken out", seconds=30)
    assert waiting(client) == backlog
    assert sorted(set(runs.asked)) == sorted(ours)
    assert runs.crons == 1


def test_pieces_are_bounded_whatever_the_length(client: redis.Redis) -> None:
    """Redis looks at so many messages per sweep at most, and none of another application reaches us."""
    send(client, (foreign_message(n) for n in range(1, 50_000)))
    seen: list[bytes] = []

    def leave(messages: Sequence[bytes]) -> Sequence[bytes]:
        seen.extend(messages)
        return ()

    sweep = Sweep(client, "celery", needle="orcheo_backend.worker.tasks.", take=leave)
    client.config_resetstat()
    assert sweep.once() == 49_999
    calls = client.info("commandstats")
    assert calls["cmdstat_lrange"]["calls"] <= 12
    assert len(seen) <= 2


def test_consumer_of_another_application_gets_its_messages_in_order(client: redis.Redis, redis_url: str) -> None:
    """Also while pushes come between them, and whether the queue is mostly empty or mostly full."""
    count = 3000
    got: list[bytes] = []

    def consume() -> None:
        with redis.Redis.from_url(redis_url) as own:
            while len(got) < count:
                popped = own.brpop("celery", 20)
                if popped is None:
                    return
                if b'"other.app"' in popped[1]:
                    got.append(popped[1])

    consumer = threading.Thread(target=consume)
    runs = Runs(*(f"run-{n}" for n in range(count)))
    with listening(redis_url, runs), listening(redis_url, runs):
        consumer.start()
        for n in range(count):
            client.lpush("celery", foreign_message(n))
            if n % 3 == 0:
                client.lpush("celery", push(f"run-{n}"))
        consumer.join(60)
    assert got == [foreign_message(n) for n in range(count)]


def test_push_of_another_installation_is_left_to_it(client: redis.Redis, redis_url: str) -> None:
    ours, theirs = Runs("a-1", "a-2"), Runs("b-1", "b-2")
    with listening(redis_url, ours):
        send(client, map(push, ("a-1", "b-1", "b-2", "a-2")))
        until(lambda: client.llen("celery") == 2, what="our pushes were taken out")
        assert waiting(client) == [push("b-1"), push("b-2")]
        with listening(redis_url, theirs):
            until(lambda: client.llen("celery") == 0, what="theirs were taken out by their dispatcher")
    assert {"b-1", "b-2"} <= set(theirs.asked)
    # Each is asked for once, however often it is met.
    assert ours.asked.count("b-1") == ours.asked.count("b-2") == 1


def test_push_that_nobody_wants_is_removed_in_the_end(
    client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "KEPT_SECONDS", 0.5)
    with listening(redis_url, Runs()):
        send(client, [foreign_message(1), push("gone"), foreign_message(2)])
        until(lambda: client.llen("celery") == 2, what="the push was removed")
    assert waiting(client) == [foreign_message(1), foreign_message(2)]


def test_what_an_earlier_release_left_in_its_inbox_is_finished(client: redis.Redis, redis_url: str) -> None:
    client.lpush("orcheo.hints", push("mine"), foreign_message(1))
    runs = Runs("mine")
    with listening(redis_url, runs):
        until(lambda: client.llen("orcheo.hints") == 0, what="the inbox was emptied")
    assert waiting(client) == [foreign_message(1)]
    assert runs.asked == ["mine"]
