"""The listener for the API's pushes: hears at once, ends at once, loses none."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from celery import Celery

from orcheo_dispatch.dispatcher.wakeups.hints import RUN_HINT, HintListener
from orcheo_dispatch.dispatcher.wakeups.push import read_push
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.sweep import PIECE
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Push
from orcheo_dispatch.shared.logs.lines import log
from tests.support.processes.processes import DEADLINE_SECONDS, until

# Less than it waits for a message.
_STOP_SECONDS = 3.0


class Heard:
    """Notes the runs that a listener calls back for; at first as often as wanted without a database."""

    def __init__(self, *, failures: int = 0) -> None:
        self.pushes: list[Push] = []
        self.calls = 0
        self.any = threading.Event()
        self._failures = failures

    def __call__(self, pushes: Sequence[Push]) -> dict[Push, bool]:
        if self._failures:
            self._failures -= 1
            raise DatabaseError("the database is unavailable")
        self.pushes += pushes
        self.calls += 1
        self.any.set()
        return dict.fromkeys(pushes, True)


def push(redis_url: str, *args: Any, headers: dict[str, Any] | None = None) -> None:
    """Publish as the API does."""
    with Celery(broker=redis_url, set_as_current=False) as app:
        app.send_task(RUN_HINT, args=args, headers=headers, queue="celery")


def test_listener_that_waits_for_a_message_ends_when_told_to(redis_url: str) -> None:
    heard = Heard()
    client = connect(redis_url)
    listener = HintListener(client, on_pushes=heard, on_cron=heard.any.clear, interval=1)
    listener.start()
    with redis.Redis.from_url(redis_url) as api:
        push(redis_url, "run-1", headers={"workspace_id": "a"})
        assert heard.any.wait(DEADLINE_SECONDS)
        # A stop before the message left Redis leaves it to whoever listens next.
        until(lambda: api.llen("celery") == 0, what="the message leaves Redis")
        listener.stop(_STOP_SECONDS)
        assert not listener._thread.is_alive()
        assert (api.llen("celery"), api.llen("orcheo.hints")) == (0, 0)
    client.close()


def test_listener_calls_back_with_the_run_and_the_workspace_of_each_push(redis_url: str) -> None:
    heard = Heard()
    client = connect(redis_url)
    listener = HintListener(client, on_pushes=heard, on_cron=heard.any.clear, interval=1)
    push(redis_url, "run-1", headers={"workspace_id": "a"})
    push(redis_url, "run-2")
    push(redis_url, "run-3", headers={"x-orcheo-workspace-id": "b"})
    # Names no run: dropped.
    push(redis_url)
    push(redis_url, "run-4", headers={"workspace_id": None, "x-orcheo-workspace-id": "c"})
    listener.start()
    try:
        until(lambda: len(heard.pushes) == 4, what="four runs were heard of")
    finally:
        listener.stop(_STOP_SECONDS)
        client.close()
    assert heard.pushes == [Push("run-1", "a"), Push("run-2", None), Push("run-3", "b"), Push("run-4", "c")]


def test_waiting_pushes_are_taken_together(redis_url: str) -> None:
    heard = Heard()
    client = connect(redis_url)
    listener = HintListener(client, on_pushes=heard, on_cron=heard.any.clear, interval=1)
    pushes = [Push(f"run-{n}", "a") for n in range(1000)]
    for each in pushes:
        push(redis_url, each.run_id, headers={"workspace_id": each.workspace_id})
    listener.start()
    try:
        until(lambda: client.llen("celery") == 0, what="all pushes were taken out")
    finally:
        listener.stop(_STOP_SECONDS)
        client.close()
    assert sorted(heard.pushes) == sorted(pushes)
    assert heard.calls <= 1000 / PIECE + 4


def test_push_that_was_not_tried_stays_in_redis(redis_url: str) -> None:
    tries: list[Sequence[Push]] = []

    def answer_one(pushes: Sequence[Push]) -> dict[Push, bool]:
        tries.append(pushes)
        return {pushes[0]: True}

    client = connect(redis_url)
    listener = HintListener(client, on_pushes=answer_one, on_cron=threading.Event().set, interval=0.05)
    for n in range(5):
        push(redis_url, f"run-{n}")
    listener.start()
    try:
        until(lambda: client.llen("celery") == 0, what="all pushes were taken out")
    finally:
        listener.stop(_STOP_SECONDS)
        client.close()
    assert [each.run_id for some in tries for each in some[:1]] == [f"run-{n}" for n in range(5)]


def test_push_stays_in_redis_until_the_database_has_answered(redis_url: str) -> None:
    heard = Heard(failures=2)
    client = connect(redis_url)
    listener = HintListener(client, on_pushes=heard, on_cron=heard.any.clear, interval=1)
    push(redis_url, "run-1")
    listener.start()
    try:
        with redis.Redis.from_url(redis_url) as api:
            assert api.llen("celery") == 1
            assert heard.any.wait(DEADLINE_SECONDS)
            until(lambda: not api.llen("celery"), what="the push was taken out of Redis")
    finally:
        listener.stop(_STOP_SECONDS)
        client.close()
    assert heard.pushes == [Push("run-1", None)]


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        "[]",
        "{}",
        json.dumps({"body": "not base64!", "properties": {"body_encoding": "base64"}, "headers": {}}),
        json.dumps({"body": "[[], {}, {}]", "properties": {}, "headers": {}}),
        json.dumps({"body": "[[7], {}, {}]", "properties": {}, "headers": {}}),
        json.dumps({"body": '[["a\\u0000"], {}, {}]', "properties": {}, "headers": {}}),
        json.dumps({"body": '[["a\\ud800"], {}, {}]', "properties": {}, "headers": {}}),
        json.dumps({"body": json.dumps([["x" * 201], {}, {}]), "properties": {}, "headers": {}}),
    ],
)
def test_push_that_names_no_run_is_none(message: bytes | str) -> None:
    assert read_push(message) is None


@pytest.mark.parametrize("workspace", [7, "", "x" * 201, ["a"], "a\x00"])
def test_push_whose_workspace_is_no_name_has_none(workspace: object) -> None:
    message = {"body": '[["run"], {}, {}]', "properties": {}, "headers": {"workspace_id": workspace}}
    assert read_push(json.dumps(message)) == Push("run", None)


def test_pushes_that_come_while_others_are_looked_at_are_not_reported_as_foreign(redis_url: str) -> None:
    heard: list[str] = []
    warnings: list[str] = []

    def push_the_next(pushes: Sequence[Push]) -> dict[Push, bool]:
        heard.extend(push.run_id for push in pushes)
        if len(heard) < 30:
            push(redis_url, f"run-{len(heard)}")
        return dict.fromkeys(pushes, True)

    client = connect(redis_url)
    listener = HintListener(client, on_pushes=push_the_next, on_cron=threading.Event().set, interval=0.1)
    push(redis_url, "run-0")
    sink = log.add(warnings.append, level="WARNING", format="{message}")
    listener.start()
    try:
        until(lambda: len(heard) == 30 and not client.llen("celery"), what="all were taken")
    finally:
        listener.stop(_STOP_SECONDS)
        client.close()
        log.remove(sink)
    assert warnings == []
