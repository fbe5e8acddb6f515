"""Our processes where a container, a shell or a service manager gives them little."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from orcheo_dispatch.ops.sandbox.child import children_of
from orcheo_dispatch.shared.broker.installation import OLD_DISPATCH_QUEUE
from tests.support.database.databases import Database
from tests.support.database.runs import all_are, everything, insert_runs
from tests.support.processes.processes import ROOT, Process, Stack, until
from tests.support.servers.namespaces import NOBODY, needs_namespaces, started_after, unshared

KINDS = ("beat", "dispatcher", "worker")


@needs_namespaces
@pytest.mark.parametrize("kind", KINDS)
def test_user_id_without_a_name_and_without_home_is_enough(database: Database, stack: Stack, kind: str) -> None:
    insert_runs(database, 3, inputs={"do": "home"})
    with started_after(stack, NOBODY, kind) as process:
        process.saw(f"{kind}_started")
        if kind == "worker":
            with stack.running("dispatcher"):
                until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


@needs_namespaces
@pytest.mark.parametrize("arguments", [["--version"], ["check"], ["status"], ["units", "orcheo.env"], ["migrate"]])
def test_commands_work_for_a_user_id_without_a_name(stack: Stack, arguments: list[str]) -> None:
    kind, *rest = arguments
    with started_after(stack, NOBODY, kind, *rest) as process:
        process.exit_code()
        process.finish()
        assert "unexpected" not in process.log


@pytest.mark.parametrize(
    ("kind", "closed"),
    [*((kind, (0, 1, 2)) for kind in KINDS), ("worker", (2,)), ("dispatcher", (0,)), ("dispatcher", (1, 2))],
)
def test_closed_standard_streams_are_nobodys_socket(
    database: Database, stack: Stack, kind: str, closed: tuple[int, ...]
) -> None:
    """What is opened next would get their numbers, and what is printed would go to Postgres or Redis."""
    insert_runs(database, 3, inputs={"do": "noise", "text": "to nobody"})
    prelude = "\n".join(f"os.close({number})" for number in closed)
    with started_after(stack, prelude, kind) as process:
        until(lambda: _is_at_work(process, database, stack, kind), what=f"{kind} is at work")
        for number in closed:
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_process_whose_output_nobody_reads_goes_on_and_ends(database: Database, stack: Stack, kind: str) -> None:
    """A full pipe: the logger of the container engine hangs. Lines are dropped, and the number of them is logged."""
    insert_runs(database, 60)
    arguments = [sys.executable, "-m", "orcheo_dispatch.ops.cli", kind]
    environment = {**os.environ, **stack.environment_of(kind), "ORCHEO_LOG_LEVEL": "TRACE"}
    reading, writing = os.pipe()
    _fill(writing)
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    try:
        if kind == "worker":
            with stack.running("dispatcher"):
                until(lambda: all_are(database, "succeeded"), what="the runs succeed", seconds=30)
        else:
            # Beat connects to no database here: its first tick says that it is at work.
            with redis.Redis.from_url(environment["REDIS_URL"]) as client:
                until(
                    lambda: client.exists(OLD_DISPATCH_QUEUE) if kind == "beat" else _sees(database, kind),
                    what=f"{kind} is at work",
                )
        # Who reads again learns that there were more lines.
        os.set_blocking(reading, False)
        seen = bytearray()

        def says_so() -> bool:
            insert_runs(database)
            with suppress(BlockingIOError):
                seen.extend(os.read(reading, 1 << 20))
            return b"log_lines_dropped" in seen

        if kind != "beat":
            with stack.running("worker" if kind == "dispatcher" else "dispatcher"):
                until(says_so, what="it says how many lines were dropped")
        _fill(writing)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    "variables",
    [
        {"LANG": "C"},
        {"LC_ALL": "POSIX"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
    ],
)
def test_no_locale_ends_a_process_or_a_command(database: Database, stack: Stack, variables: dict[str, str]) -> None:
    (run_id,) = insert_runs(
        database, triggered_by="na\u00efve \u4e2d \U0001f600", inputs={"do": "noise", "text": "\u4e2d\U0001f600"}
    )
    given = {**variables, "ORCHEO_DISPATCH_TRIGGERS": "*"}
    with stack.running("dispatcher", **given), stack.running("worker", **given):
        until(lambda: all_are(database, "succeeded"), what="the run succeeds")
    for arguments in (
        ["runs"],
        ["runs", "--json"],
        ["run", run_id],
        ["status"],
        ["check"],
        ["fail", "\u4e2d", "--reason", "\u4e2d"],
    ):
        with stack.command(*arguments, **given) as process:
            process.exit_code()
            process.finish()
            assert "unexpected" not in process.log, process.log
            assert "Traceback" not in process.log, process.log


def test_worker_with_few_file_descriptors_says_so_and_executes(database: Database, stack: Stack) -> None:
    insert_runs(database, 200)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    with stack.running("dispatcher"), started_after(stack, limit, "worker") as worker:
        worker.saw("file_descriptors_low")
        until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        worker.signal(signal.SIGTERM)
        assert worker.exit_code() == 0


def test_soft_limit_of_file_descriptors_is_raised_to_the_hard_one(stack: Stack) -> None:
    hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, {hard}))"
    with started_after(stack, limit, "dispatcher") as process:
        process.saw("dispatcher_started")
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == [str(hard), str(hard)]


@needs_namespaces
@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, signal.SIGTERM) for kind in KINDS), ("worker", signal.SIGQUIT), ("worker", signal.SIGINT)],
)
def test_process_1_reaps_orphans_and_obeys_signals(
    database: Database, stack: Stack, kind: str, number: signal.Signals
) -> None:
    insert_runs(database, 3, inputs={"do": "orphan"})
    with _as_process_1(stack, kind) as outside:
        outside.saw(f"{kind}_started")
        (first,) = children_of(outside.pid)
        if kind == "worker":
            with stack.running("dispatcher"):
                until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        until(lambda: not _zombies(first), what="no zombie is left")
        os.kill(first, number)
        assert outside.exit_code(seconds=30) == 0


@needs_namespaces
def test_process_1_ends_as_the_command_ends(stack: Stack) -> None:
    with _as_process_1(stack, "worker", ORCHEO_WORKER_LEASE="no") as outside:
        assert outside.exit_code() == 2
    with _as_process_1(stack, "worker") as outside:
        outside.saw("worker_started")
        (first,) = children_of(outside.pid)
        (worker,) = children_of(first)
        os.kill(worker, signal.SIGKILL)
        assert outside.exit_code() == 128 + signal.SIGKILL


@needs_namespaces
@pytest.mark.parametrize("kind", KINDS)
def test_root_file_system_may_be_read_only(database: Database, stack: Stack, kind: str) -> None:
    insert_runs(database, 3)
    script = 'mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,ro,bind / && exec "$@"'
    with unshared(stack, kind, "--mount", "sh", "-euc", script, "sh", HOME="/nonexistent") as process:
        process.saw(f"{kind}_started")
        if kind == "worker":
            with stack.running("dispatcher"):
                until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


def _as_process_1(stack: Stack, kind: str, **variables: str) -> Process:
    return unshared(stack, kind, "--pid", "--fork", "--mount-proc", "--kill-child", **variables)


def _zombies(first: int) -> list[int]:
    states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children_of(first)}
    return [pid for pid, state in states.items() if state == "Z"]


def _is_at_work(process: Process, database: Database, stack: Stack, kind: str) -> bool:
    if kind == "worker":
        with stack.running("dispatcher"):
            until(lambda: all_are(database, "succeeded"), what="the runs succeed")
        return True
    return _sees(database, kind) if kind == "dispatcher" else _ticks(stack)


def _sees(database: Database, kind: str) -> bool:
    return bool(everything(database, "SELECT FROM orcheo_dispatch.process WHERE kind = %s", kind))


def _ticks(stack: Stack) -> bool:
    with redis.Redis.from_url(stack.environment["REDIS_URL"]) as client:
        return bool(client.keys("*"))


def _fill(writing: int) -> None:
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 512)
    except BlockingIOError:
        pass
    try:
        while True:
            os.write(writing, b"x")
    except BlockingIOError:
        os.set_blocking(writing, True)
