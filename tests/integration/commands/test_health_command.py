"""`orcheo-dispatch health` and `check --for`: what scripts, probes and units ask."""

from __future__ import annotations

import json

import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.support.database.databases import Database
from tests.support.database.roles import Kind, Roles
from tests.support.processes.processes import Stack, until


def _ran(stack: Stack, *arguments: str, expect: int = 0, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        code = process.exit_code()
        process.finish()
        assert code == expect, process.log
        assert "Traceback" not in process.log
        assert "hunter2" not in process.log
        return process.log


def test_health_says_whether_a_process_is_live_and_ready_and_why(
    database: Database, redis_server: EmbeddedRedis, stack: Stack
) -> None:
    port = str(free_port())
    here = {"ORCHEO_HEALTH_PORT": port}
    with stack.running("dispatcher", **here, REDIS_URL=redis_server.url) as dispatcher:
        until(lambda: "ready: yes" in _log(stack, "health", **here), what="it is ready")
        assert _ran(stack, "health", "--port", port).splitlines()[:2][0] == "live: yes"
        assert "poll: last poll succeeded" in _ran(stack, "health", "--url", f"http://127.0.0.1:{port}/livez")
        redis_server.stop()
        dispatcher.saw("broker_unavailable")
        until(lambda: "broker: Redis is unavailable" in _log(stack, "health", **here), what="it is not ready")
        answer = json.loads(_ran(stack, "health", "--json", expect=1, **here))
        assert [(each["name"], each["ok"]) for each in answer] == [("live", True), ("ready", False)]
        assert answer[1]["why"] == ["broker: Redis is unavailable"]
        # Nothing that a restart would mend.
        assert "ready" not in _ran(stack, "health", "--live", expect=0, **here)
    assert "no answer from http://127.0.0.1" in _ran(stack, "health", expect=1, **here)


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        ([], {}, "ORCHEO_HEALTH_PORT is not set"),
        ([], {"ORCHEO_HEALTH_PORT": "many"}, "ORCHEO_HEALTH_PORT='many' is invalid: expected a port"),
        (["--url", "ftp://x"], {}, "--url has an invalid value: expected a URL such as"),
        (["--url", "http://me:hunter2@x"], {}, "--url has an invalid value: expected a URL such as"),
        (["--url", "http://x:y"], {}, "--url has an invalid value: expected a URL such as"),
        (["--url", "http://x", "--port", "1"], {}, "--url and --port were both given"),
    ],
)
def test_health_without_an_address_exits_with_two(
    stack: Stack, arguments: list[str], variables: dict[str, str], says: str
) -> None:
    assert says in _ran(stack, "health", *arguments, expect=2, **variables)


def test_answer_of_somebody_else_is_not_health(stack: Stack, redis_server: EmbeddedRedis) -> None:
    assert "live: no" in _ran(stack, "health", "--port", str(redis_server.port), "--timeout", "1", expect=1)


def test_check_for_one_kind_looks_at_what_it_needs(stack: Stack, roles: Roles) -> None:
    away = "postgresql://me:hunter2@127.0.0.1:1/x"
    assert "PostgreSQL" not in _ran(stack, "check", "--for", "beat", ORCHEO_POSTGRES_DSN=away)
    _ran(stack, "check", "--for", "dispatcher", ORCHEO_POSTGRES_DSN=away, expect=3)
    said = _ran(stack, "check", "--for", "dispatcher")
    assert "enough for a dispatcher" in said
    assert "executor  " not in said
    # With the rights of a dispatcher.
    assert "a worker lacks INSERT ON orcheo_dispatch.question" in _ran(stack, "check", "--for", "worker", expect=3)
    its = {"ORCHEO_POSTGRES_DSN": stack.database.dsn_of(Kind.WORKER)}
    _ran(stack, "check", "--for", "worker", **its, REDIS_URL="redis://:hunter2@127.0.0.1:1/0", expect=4)
    said = _ran(stack, "check", "--for", "worker", expect=0, **its)
    assert "enough for a worker" in said
    assert "tests.support.runners.executors:play" in said


def test_instance_of_a_worker_has_a_port_above_its_base(stack: Stack) -> None:
    port = free_port()
    with stack.command("worker", "--instance", "3", ORCHEO_HEALTH_PORT=str(port)) as worker:
        worker.saw("worker_started")
        until(lambda: "live: yes" in _log(stack, "health", "--port", str(port + 3)), what="it answers there")
    assert "ORCHEO_HEALTH_PORT=65535 is invalid: expected" in _ran(
        stack, "worker", "--instance", "3", ORCHEO_HEALTH_PORT="65535", expect=2
    )


def _log(stack: Stack, *arguments: str, **variables: str) -> str:
    with stack.command(*arguments, **variables) as process:
        process.exit_code()
        process.finish()
        return process.log
