"""Ticks and records in Redis that somebody else wrote end no process and no command."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.shared.broker.app import BEAT_HEADER, TICK
from tests.integration.worker.test_forged_messages import call, message
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything, insert_runs, installation_of
from tests.support.processes.processes import Stack, until

_ID = "7d1f9b1c-4c2a-4c9e-8d3e-6d5f0e2b9a11"
_BEATS: dict[str, Any] = {
    "markup": {"id": str(uuid4()), "host": "[/red][bold]x[/nothing]", "pid": 1},
    "escapes": {"id": str(uuid4()), "host": "\x1b[2J\u202e\ud800\x00", "pid": 1},
    "huge host": {"id": str(uuid4()), "host": "h" * 1_000_000, "pid": 1},
    "host is an object": {"id": str(uuid4()), "host": {"a": [None] * 1000}, "pid": 1},
    "huge pid": {"id": _ID, "host": "h", "pid": 2**70},
    "pid without an end": {"id": _ID, "host": "h", "pid": "9" * 10_000},
    "infinite pid": {"id": _ID, "host": "h", "pid": float("inf")},
    "pid that is none": {"id": _ID, "host": "h", "pid": float("nan")},
    "pid is true": {"id": str(uuid4()), "host": "h", "pid": True},
    "pid is a list": {"id": _ID, "host": "h", "pid": [1]},
    "id is a number": {"id": 7, "host": "h", "pid": 1},
    "id is markup": {"id": "[/]", "host": "h", "pid": 1},
    "a list": [1, 2, 3],
    "text": "beat",
    "a number": 1e300,
    "nothing": None,
}
_RECORDS: dict[str, Any] = {
    "markup": {"host": "[/red]", "by_itself": "[/]", "outcome": "[bold]", "reason": "[/nothing] \x1b[2J"},
    "wrong types": {"host": {"a": 1}, "by_itself": [], "outcome": 1e300, "reason": None},
    "huge": {"host": "h" * 5_000_000, "by_itself": True, "outcome": "x", "reason": "y"},
    "a list": [1],
    "a number": 7,
}
_COMMANDS = (["status"], ["status", "--json"], ["check"], ["check", "--json"], ["runs"], ["poll"])
_OF_AN_EXCEPTION = ("Traceback", "MarkupError", "process_failed", "thread_failed", "step_crashed", "poll_failed")


def _commands_work(stack: Stack) -> None:
    for command in _COMMANDS:
        with stack.command(*command) as process:
            assert process.exit_code() in ({0, 1} if "check" in command else {0}), command
            process.finish()
            assert [word for word in _OF_AN_EXCEPTION if word in process.log] == [], command
            assert "\x1b[2J" not in process.log


def test_forged_ticks_end_nothing(database: Database, stack: Stack, redis_url: str) -> None:
    queue = installation_of(database).dispatch
    with redis.Redis.from_url(redis_url) as client, stack.running("dispatcher") as dispatcher:
        dispatcher.saw("dispatcher_started")
        for beat in _BEATS.values():
            forged = message(call(), task=TICK, **{BEAT_HEADER: beat})
            forged["properties"]["delivery_info"]["routing_key"] = queue
            client.lpush(queue, json.dumps(forged))
        until(lambda: client.llen(queue) == 0, what="all ticks were taken")
        insert_runs(database, 5)
        until(lambda: not all_are(database, "nothing") and _published(database) == 5, what="runs are published")
        until(
            lambda: everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = 'beat' LIMIT 1"),
            what="a forged Beat is on the list",
        )
        _commands_work(stack)
        assert [word for word in _OF_AN_EXCEPTION if word in dispatcher.log] == []


def _published(database: Database) -> int:
    rows = everything(database, "SELECT run_id FROM orcheo_dispatch.dispatch WHERE state = 'published'")
    return len(rows)


@pytest.mark.parametrize("kind", [*_RECORDS, "binary", "a hash"])
def test_forged_records_of_cron_end_no_check(database: Database, stack: Stack, redis_url: str, kind: str) -> None:
    name = installation_of(database).cron_record
    with redis.Redis.from_url(redis_url) as client:
        for which in ("success", "failure"):
            key = f"{name}.{which}"
            if kind == "a hash":
                client.hset(key, "a", "b")
            else:
                client.set(key, b"\xff\xfe\x00" if kind == "binary" else json.dumps(_RECORDS[kind]), px=2**40)
    with stack.command("check") as process:
        assert process.exit_code() in {0, 1, 4}
        process.finish()
        assert [word for word in _OF_AN_EXCEPTION if word in process.log] == []
