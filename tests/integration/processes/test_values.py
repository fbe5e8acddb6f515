"""Processes under the environments that installations really have, and settings at the ends of their bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.health.probe import LIVE, ask
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database
from tests.support.database.runs import insert_runs, ledger, read_run, settings_for
from tests.support.processes.processes import Stack, until

_MARGIN = 0.001


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "side-effects")


def _ends() -> Iterator[tuple[str, Any]]:
    """Yield each setting with a bound, at that bound."""
    for name, field in Settings.model_fields.items():
        if name == "health_port":
            continue
        for each in field.metadata:
            match each:
                case Ge(ge=end) | Le(le=end):
                    yield name, end
                case Gt(gt=int(end) | float(end)):
                    yield name, end + _MARGIN


@pytest.mark.parametrize(("name", "value"), list(_ends()))
def test_poll_works_with_each_setting_at_the_end_of_its_bounds(
    database: Database, redis_url: str, name: str, value: Any
) -> None:
    (run_id,) = insert_runs(database)
    # A lease is at least two heartbeats.
    more = {"heartbeat": {"worker_lease": 3600.0}, "worker_lease": {"heartbeat": 0.1}}.get(name, {})
    settings = settings_for(database, redis_url, **{name: value}, **more)
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    try:
        assert dispatcher.poller.poll().published == 1
        # What is due by then: reaping, reconciling, pruning.
        assert dispatcher.poller.poll().broker_error is None
        dispatcher.poller.finish()
    finally:
        dispatcher.close()
        app.close()
    assert ledger(database, run_id)["state"] == "published"


_LONG = "1000000000"
_ODD = {
    "ORCHEO_LOG_FORMAT": "console",
    "ORCHEO_LOG_LEVEL": "info",
    "ORCHEO_WORKER_RUN_TIMEOUT": _LONG,
    "ORCHEO_WORKER_DRAIN_TIMEOUT": f"{_LONG}\r\n",
    "ORCHEO_DISPATCH_RETENTION": f'"{_LONG}"',
    "ORCHEO_DISPATCH_LOST_RUNS": "REQUEUE",
    "ORCHEO_HEALTH_PORT": "",
}


def test_run_succeeds_under_an_environment_as_installations_have_it(database: Database, stack: Stack) -> None:
    def quoted(value: str) -> str:
        return f'"{value}"\r\n'

    for name in ("REDIS_URL", "ORCHEO_REDIS_URL"):
        stack.environment[name] = quoted(stack.environment[name])
    stack.environment |= _ODD
    dsn = stack.environment_of("worker")["ORCHEO_POSTGRES_DSN"].replace("postgresql://", "postgresql+asyncpg://")
    with stack.running("worker", ORCHEO_POSTGRES_DSN=f"{dsn}\n") as worker, stack.running("dispatcher") as dispatcher:
        (run_id,) = insert_runs(database)
        worker.saw(f"run_settled run_id={run_id}")
        assert "setting_read_differently variable=ORCHEO_POSTGRES_DSN" in worker.log
        for line in ("variable=REDIS_URL", "variable=ORCHEO_REDIS_URL"):
            assert f"setting_read_differently {line}" in dispatcher.log
        for process in (worker, dispatcher):
            assert " INFO " in process.log
            assert "ORCHEO_LOG" not in process.log
    assert read_run(database, run_id)["status"] == "succeeded"


@pytest.mark.parametrize(("level", "form"), [("CRITICAL", "console"), ("verbose", "pretty"), ("30", "JSON")])
@pytest.mark.parametrize("kind", ["beat", "dispatcher", "worker"])
def test_process_starts_with_what_orcheo_accepts_for_its_logs(stack: Stack, kind: str, level: str, form: str) -> None:
    port = free_port()
    variables = {"ORCHEO_LOG_LEVEL": level, "ORCHEO_LOG_FORMAT": form, "ORCHEO_HEALTH_PORT": f" {port}\n"}
    with stack.command(kind, **variables) as process:
        # Quiet levels log nothing at the start.
        until(lambda: ask("127.0.0.1", port, LIVE)[0], what=f"a {kind} that answers")
        if level == "verbose":
            process.saw('"event": "setting_read_differently"')
            assert all(line.startswith("{") for line in process.lines), process.log


def test_check_names_what_is_read_differently(stack: Stack) -> None:
    variables = {"ORCHEO_LOG_LEVEL": "verbose", "ORCHEO_LOG_FORMAT": "pretty", "ORCHEO_WORKER_LEASE": "30\n"}
    with stack.command("check", "--json", **variables) as process:
        assert process.exit_code() == 0, process.log
        process.finish()
        noted = [each["what"] for each in json.loads(process.log) if each["what"] in variables]
    assert noted == sorted(variables)


def test_check_warns_of_localhost_in_a_container(stack: Stack) -> None:
    with stack.command("check", "--json", container="oci", ORCHEO_API_URL="http://localhost:8000") as process:
        process.exit_code()
        process.finish()
        found = {each["what"]: each for each in json.loads(process.log)}
    assert found["addresses in a container"]["grade"] == "warn"
    assert found["addresses in a container"]["found"].startswith(
        "ORCHEO_POSTGRES_DSN, REDIS_URL, ORCHEO_REDIS_URL, ORCHEO_API_URL on localhost"
    ) or found["addresses in a container"]["found"].startswith("REDIS_URL, ORCHEO_REDIS_URL, ORCHEO_API_URL on")


def test_check_says_what_a_missing_address_of_the_slots_stands_for(stack: Stack) -> None:
    del stack.environment["ORCHEO_REDIS_URL"]
    with stack.command("check", "--json") as process:
        process.exit_code()
        process.finish()
        found = {each["what"]: each["found"] for each in json.loads(process.log)}
    assert found["Redis of the run slots"].endswith(
        "ORCHEO_REDIS_URL is not set and counts as redis://localhost:6379/0"
    )
