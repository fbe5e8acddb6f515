"""Whoever can write to Redis can send anything. It does nothing, but for one warning, without a word of its content."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from tests.support.database.databases import Database
from tests.support.database.runs import execute, insert_runs, installation_of, ledger, read_run
from tests.support.processes.processes import Process, Stack, until

SECRET = "swordfish"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def message(body: bytes, **overrides: Any) -> dict[str, Any]:
    """A message as kombu writes it; `overrides` change its headers, and with `None` take them out."""
    headers = {"lang": "py", "task": "orcheo_dispatch.execute_run", "id": str(uuid4()), **overrides}
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {name: value for name, value in headers.items() if value is not None},
        "properties": {
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "orcheo.runs"},
        },
    }


def call(*arguments: Any, **options: Any) -> bytes:
    """The body of a message that calls a task with these arguments."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **options}
    return json.dumps([arguments, {}, embed]).encode()


def without(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key != name}


def as_type(content_type: str, body: bytes) -> dict[str, Any]:
    return {**message(body), "content-type": content_type}


def signature(task: str) -> dict[str, Any]:
    return {"task": task, "args": [SECRET], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/orcheo-dispatch-unpickled"),)


def forgeries(run_id: str) -> dict[str, Any]:
    """Raw texts, or messages to be written as JSON."""
    return {
        "not JSON": f"{SECRET} not json",
        "not UTF-8": b"\xff\xfe" + SECRET.encode(),
        "nested deeply": "[" * 200_000,
        "a number": "7",
        "a list": json.dumps([SECRET]),
        "an empty object": "{}",
        "no properties": without("properties", message(call(run_id, 1))),
        "no body": without("body", message(call(run_id, 1))),
        "no headers": without("headers", message(call(run_id, 1))),
        "headers are a list": {**message(call(run_id, 1)), "headers": [SECRET]},
        "properties are text": {**message(call(run_id, 1)), "properties": SECRET},
        "body is no base64": {**message(b""), "body": "%%%" + SECRET},
        "no task": message(call(run_id, 1), task=None),
        "another task": message(call(SECRET), task="os.system"),
        "a task of Celery's": message(call(SECRET), task="celery.backend_cleanup"),
        "a task that is a list": message(call(run_id, 1), task=[SECRET]),
        "a task that is a number": message(call(run_id, 1), task=7),
        "no id": message(call(run_id, 1), id=None),
        "pickle": as_type("application/x-python-serialize", pickle.dumps(_Bomb())),
        "yaml": as_type("application/x-yaml", f"!!python/object/apply:os.system [{SECRET}]".encode()),
        "unknown type": as_type("application/x-" + SECRET, b"x"),
        "body is not JSON": message(SECRET.encode()),
        "body is an object": message(json.dumps({"run_id": run_id, "secret": SECRET}).encode()),
        "body is short": message(b"[]"),
        "arguments are text": message(json.dumps([SECRET, {}, {}]).encode()),
        "one argument": message(call(run_id)),
        "three arguments": message(call(run_id, 1, SECRET)),
        "fence is text": message(call(run_id, "1")),
        "fence is a float": message(call(run_id, 1.0)),
        "fence is true": message(call(run_id, True)),
        "fence is negative": message(call(run_id, -1)),
        "fence is huge": message(call(run_id, 2**70)),
        "run is null": message(call(None, 1)),
        "run is an object": message(call({"secret": SECRET}, 1)),
        "run holds NUL": message(call(f"{run_id}\x00", 1)),
        "keywords": message(json.dumps([[run_id, 1], {"secret": SECRET}, {}]).encode()),
        "delayed": message(call(run_id, 1), eta="2999-01-01T00:00:00"),
        "expires": message(call(run_id, 1), expires="2999-01-01T00:00:00"),
        "eta is rubbish": message(call(run_id, 1), eta=SECRET),
        "wants a task to follow": message(call(run_id, 1, callbacks=[signature("os.system")])),
        "wants a time limit": message(call(run_id, 2), timelimit=[3600, 3600]),
        "10 MB": message(call(SECRET * 1_200_000, 1)),
        "10 MB of another task": message(call(SECRET * 1_200_000), task="os.system"),
        "an unknown run": message(call(str(uuid4()), 1)),
        "an old fence": message(call(run_id, 1)),
        "a fence to come": message(call(run_id, 3)),
    }


def _push(client: redis.Redis, queue: str, forged: Any) -> None:
    client.lpush(queue, forged if isinstance(forged, str | bytes) else json.dumps(forged))


def _warnings(worker: Process) -> list[str]:
    """Return what it complains of, but for what it says at its start: that it runs as root, and has no Orcheo."""
    complaints = (line for line in worker.lines if "WARNING" in line or "ERROR" in line or "CRITICAL" in line)
    return [line for line in complaints if "celery/platforms.py" not in line and "cron_unavailable" not in line]


def _has_warnings(worker: Process, count: int) -> bool:
    return len(_warnings(worker)) >= count


def test_forged_message_does_nothing_but_one_warning(database: Database, stack: Stack, client: redis.Redis) -> None:
    bomb = Path("/tmp/orcheo-dispatch-unpickled")
    bomb.unlink(missing_ok=True)
    installation = installation_of(database)
    queue = installation.runs
    (run_id,) = insert_runs(database)
    with stack.command("poll") as first:
        assert first.exit_code() == 0
    client.delete(queue)
    # The run is claimed under fence 2, and its message is kept back.

    execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = 2")
    before = (read_run(database, run_id), ledger(database, run_id))
    with stack.running("worker") as worker:
        for count, (name, forged) in enumerate(forgeries(run_id).items(), 1):
            _push(client, queue, forged)
            until(partial(_has_warnings, worker, count), what=f"a warning of: {name}", seconds=10)
            assert len(_warnings(worker)) == count, f"{name}: {_warnings(worker)[count - 1 :]}"
        assert (read_run(database, run_id), ledger(database, run_id)) == before
        until(lambda: client.llen(queue) == 0 and client.hlen(installation.unacked) == 0, what="nothing is kept")
        # And it works on.
        _push(client, queue, message(call(run_id, 2)))
        until(lambda: read_run(database, run_id)["status"] == "succeeded", what="the true message is taken")
        # A replay is one more warning.
        _push(client, queue, message(call(run_id, 2)))
        worker.saw("reason=stale")
    assert stack.noted("begun") == [run_id]
    assert SECRET not in worker.log
    assert "broker_unavailable" not in worker.log
    assert "Traceback" not in worker.log
    assert not bomb.exists()
