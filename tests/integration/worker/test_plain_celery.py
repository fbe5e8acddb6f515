"""Beat, dispatcher and worker also start with the `celery` command alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything, insert_runs
from tests.support.processes.processes import Process, Stack, until
from tests.support.servers.namespaces import needs_namespaces, unshared_command

_COMMANDS = {
    "orcheo_dispatch.dispatcher.beat": "beat",
    "orcheo_dispatch.dispatcher.app": "dispatcher",
    "orcheo_dispatch.worker.app": "worker",
}


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "side-effects")


def _celery(stack: Stack, *arguments: str, **variables: str) -> Process:
    module = next(each for each in _COMMANDS if each in arguments)
    return Process(["-m", "celery", *arguments], stack.environment_of(_COMMANDS[module], **variables))


def test_pending_runs_are_executed_by_plain_celery(database: Database, stack: Stack) -> None:
    insert_runs(database, 10)
    with (
        _celery(stack, "-A", "orcheo_dispatch.dispatcher.beat", "beat") as beat,
        _celery(stack, "-A", "orcheo_dispatch.dispatcher.app", "worker", "-n", "dispatcher@%h") as dispatcher,
        _celery(stack, "-A", "orcheo_dispatch.worker.app", "worker", "-n", "worker@%h") as worker,
    ):
        until(
            lambda: everything(database, "SELECT DISTINCT status FROM workflow_runs") == [{"status": "succeeded"}],
            what="every run succeeded",
        )
        kinds = {row["kind"] for row in everything(database, "SELECT kind FROM orcheo_dispatch.process")}
        assert {"dispatcher", "worker"} <= kinds
        assert everything(database, "SELECT concurrency FROM orcheo_dispatch.process WHERE kind = 'worker'") == [
            {"concurrency": 32}
        ]
        for process in (worker, dispatcher, beat):
            process.signal(signal.SIGTERM)
        assert [process.exit_code() for process in (worker, dispatcher, beat)] == [0, 0, 0]


@needs_namespaces
def test_worker_of_plain_celery_may_be_process_1(database: Database, stack: Stack) -> None:
    """As in a container whose command is `celery`: the parent of its fork server is process 1, and has not ended."""
    insert_runs(database, 3)
    arguments = ["-m", "celery", "-A", "orcheo_dispatch.worker.app", "worker"]
    with (
        unshared_command(stack, "worker", arguments, "--pid", "--fork", "--mount-proc", "--kill-child") as worker,
        stack.running("dispatcher"),
    ):
        worker.saw("worker_started")
        until(lambda: all_are(database, "succeeded"), what="the runs succeed")


@pytest.mark.parametrize(
    "module", ["orcheo_dispatch.dispatcher.beat", "orcheo_dispatch.dispatcher.app", "orcheo_dispatch.worker.app"]
)
def test_wrong_setting_is_one_line_under_plain_celery_too(stack: Stack, module: str) -> None:
    with _celery(stack, "-A", module, "report", ORCHEO_DISPATCH_POLL_INTERVAL="soon") as process:
        assert process.exit_code() == 2
        process.finish()
        assert "ORCHEO_DISPATCH_POLL_INTERVAL='soon'" in process.log
        assert "Traceback" not in process.log


def test_no_other_pool_is_accepted_on_the_command_line(stack: Stack) -> None:
    with _celery(stack, "-A", "orcheo_dispatch.worker.app", "worker", "-P", "solo") as process:
        assert process.exit_code() == 2
        process.finish()
        assert "celery -P='solo' is invalid: expected 'threads' or no -P" in process.log


@pytest.mark.parametrize(
    "module", ["orcheo_dispatch.dispatcher.beat", "orcheo_dispatch.dispatcher.app", "orcheo_dispatch.worker.app"]
)
def test_importing_an_app_reads_no_environment(stack: Stack, module: str) -> None:
    with Process(["-c", f"import {module}"], {"PYTHONPATH": stack.environment["PYTHONPATH"]}) as process:
        assert process.exit_code() == 0
