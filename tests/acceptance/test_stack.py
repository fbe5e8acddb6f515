"""Beside the real API: the services of compose.orcheo.yml with the stack's `.env`, and a worker of any user id."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from orcheo_dispatch.ops.adoption.env_advice import read_env_file
from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.broker.slots import COUNTER
from tests.support.orcheo.orcheo_stack import stack_beside, start_afresh, upload
from tests.support.processes.processes import ROOT, Process, until
from tests.support.servers.compose import environment_of, merged, read_compose
from tests.support.servers.namespaces import NOBODY, needs_namespaces, started_after

_STACK = ROOT / "tests/stack"
_SERVICES = {"celery-beat": "beat_started", "dispatcher": "dispatcher_started", "worker": "worker_started"}
# What is a host or a folder of the containers.
_OURS = ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL")


@needs_namespaces
@pytest.mark.parametrize("home", ["", "/nonexistent"])
def test_orcheo_executes_for_a_user_id_without_a_name_or_a_home(orcheo: OrcheoApi, home: str) -> None:
    start_afresh(orcheo)
    greet = upload(orcheo, greet="greet")["greet"]
    stack = stack_beside(orcheo)
    prelude = f"{NOBODY}\nif {home!r}: os.environ['HOME'] = {home!r}"
    with stack.running("dispatcher"), started_after(stack, prelude, "worker") as worker:
        worker.saw("worker_started", seconds=200)
        assert "home_replaced" in worker.log
        run = orcheo.fire_webhook(greet, {"name": "Ada"})
        until(lambda: orcheo.run(run["id"])["status"] == "succeeded", what="the run succeeds")


def test_services_execute_the_runs_of_the_api(orcheo: OrcheoApi, tmp_path: Path) -> None:
    start_afresh(orcheo)
    greet = upload(orcheo, greet="greet")["greet"]
    env_file = read_env_file(_STACK / "stack.env")
    variables = {**env_file, "ORCHEO_DISPATCH_SOURCE": str(ROOT)}
    services = merged(
        read_compose(_STACK / "docker-compose.yml", variables),
        read_compose(ROOT / "ops/container/compose.orcheo.yml", variables),
    )["services"]
    with ExitStack() as running:
        for name, started in _SERVICES.items():
            environment = {
                key: value.replace("/data", str(tmp_path))
                for key, value in environment_of(services[name], env_file).items()
            }
            environment |= {key: orcheo.variables[key] for key in _OURS}
            environment |= {"ORCHEO_HEALTH_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
            command = [*services[name].get("entrypoint", []), *services[name]["command"]]
            process = running.enter_context(Process(["-m", "orcheo_dispatch.ops.cli", *command[1:]], environment))
            process.saw(started, seconds=200)
        run = orcheo.fire_webhook(greet, {"name": "Ada"})
        until(lambda: orcheo.run(run["id"])["status"] == "succeeded", what="the run succeeds")
        with redis.Redis.from_url(orcheo.variables["REDIS_URL"]) as client:
            until(lambda: not client.exists(COUNTER + run["workspace_id"]), what="its slot comes back")
