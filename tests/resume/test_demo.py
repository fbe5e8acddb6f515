"""The demo kills a worker, shows its run continuing on the other one, and leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from orcheo_dispatch.ops.demo.killing import AGENT, play
from orcheo_dispatch.ops.demo.stack import DemoStack, demo_variables, our_processes, second_worker, wait_until_at_work
from orcheo_dispatch.ops.sandbox.child import end, launch
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.orcheo.orcheo_stack import ingest, start_afresh
from tests.support.processes.processes import until

_STEPS = ["model 1", "look_up paper", "model 2", "look_up ink", "model 3", "look_up glue", "model 4"]
# A minute on an idle machine.
_SECONDS = 400.0
_BEGUN = re.compile(r"worker (\d+) begins step \d, (.+)")
_KILLED = re.compile(r"worker (\d+) is killed with SIGKILL, in the middle of step (\d)")
_COMMAND = Path(sys.executable).with_name("orcheo-dispatch")
_FOLDER = re.compile(r"\S+/orcheo-dispatch-demo-\w+")


@contextmanager
def _demo(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start the demo with few runs; yield its process and its output."""
    log = folder / "demo.log"
    command = [sys.executable, "-u", "-m", "orcheo_dispatch.ops.cli", "demo", "--webhooks", "2", "--cli-runs", "1"]
    command += options
    process = launch(command, log=log, death_signal=signal.SIGTERM)
    try:
        yield process, log
    finally:
        end(process, (signal.SIGTERM, 60.0))


def _left_running(log: Path) -> list[str]:
    """Return the commands of processes that know the demo's scratch folder, which must be gone too."""
    found = _FOLDER.search(log.read_text())
    assert found, "the demo names its scratch folder"
    assert not Path(found[0]).exists()
    return [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if _knows(path.parent, found[0])]


def _knows(process: Path, folder: str) -> bool:
    try:
        return any(folder.encode() in (process / name).read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_demo_continues_a_run_on_another_worker_and_repeats_no_finished_step(tmp_path: Path) -> None:
    with _demo(tmp_path) as (process, log):
        assert process.wait(_SECONDS) == 0, log.read_text()
    shown = log.read_text()
    begun = _BEGUN.findall(shown)
    ((killed, number),) = _KILLED.findall(shown)
    # Step 4, unless the demo itself is held up.
    finished = int(number) - 1
    assert Counter(step for _, step in begun) == {step: 2 if step == _STEPS[finished] else 1 for step in _STEPS}
    assert [step for pid, step in begun if pid == killed] == _STEPS[: finished + 1]
    assert [step for pid, step in begun if pid != killed] == _STEPS[finished:]
    assert len({pid for pid, _ in begun}) == 2
    assert f"the trace has a step 'resumed': continued after step {finished}" in shown
    assert re.search(r"status page, with live runs: http://127\.0\.0\.1:\d+/", shown)
    assert f"$ {_COMMAND} demo --keep " in shown[shown.index("\nnext:\n") :]
    assert "Orcheo's API: succeeded, 'Together they cost 37 EUR.'" in shown
    assert _left_running(log) == []


@pytest.mark.timeout(600)
def test_demo_leaves_nothing_running_when_interrupted_after_the_kill(tmp_path: Path) -> None:
    with _demo(tmp_path) as (process, log):
        until(lambda: process.poll() is not None or _KILLED.search(log.read_text()), what="a kill", seconds=_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(60.0) == 130, log.read_text()
    assert _left_running(log) == []


@pytest.mark.timeout(600)
def test_demo_that_is_kept_prints_addresses_and_commands_that_work_in_another_shell(tmp_path: Path) -> None:
    with _demo(tmp_path, "--keep") as (process, log):
        until(lambda: process.poll() is not None or "To stop:" in log.read_text(), what="the end", seconds=_SECONDS)
        shown = log.read_text()
        assert process.poll() is None, shown
        kept = shown[shown.index("Everything stays up") :]
        addresses = dict(re.findall(r"^  (\S.*?) {2,}(http://\S+)$", kept, re.MULTILINE))
        assert {"Orcheo's API", "status page", "health", "metrics"} <= set(addresses)
        assert {name: httpx.get(url).status_code for name, url in addresses.items()} == dict.fromkeys(addresses, 200)
        load, *commands = re.findall(r"^  \$ (.+)$", kept, re.MULTILINE)
        assert len(commands) >= 5
        (acting,) = (command for command in commands if "ORCHEO_PAGE_ACTIONS" in command)
        commands.remove(acting)
        _lets_operators_act(f"{load}\n{acting}", tmp_path)
        for command in ("true", *commands):
            # A shell as another terminal has it: neither an activated environment nor a variable of ours.
            done = subprocess.run(
                ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "/bin/sh", "-c", f"{load}\n{command}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                cwd=tmp_path,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        (file,) = re.findall(r"\. (\S+);", load)
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        process.send_signal(signal.SIGINT)
        assert process.wait(60.0) == 130, log.read_text()
    assert _left_running(log) == []


def _lets_operators_act(commands: str, folder: Path) -> None:
    """Start the dispatcher of these lines: its page takes the token that they set, and begins a session for acting."""
    found = re.search(r"ORCHEO_HEALTH_TOKEN=(\S+) ORCHEO_HEALTH_PORT=(\d+)", commands)
    assert found is not None
    token, url = found[1], f"http://127.0.0.1:{found[2]}"
    shell = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "/bin/sh", "-c", commands]
    with (folder / "acting.log").open("w") as log:
        dispatcher = subprocess.Popen(shell, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:

        def status(path: str, **headers: str) -> int:
            try:
                return httpx.get(f"{url}{path}", headers=headers).status_code
            except httpx.TransportError:
                return 0

        until(lambda: status("/") == 200, what="its page", seconds=60)
        assert status("/session.json") == 401
        assert status("/session.json", authorization=f"Bearer {token}") == 200
    finally:
        os.killpg(dispatcher.pid, signal.SIGTERM)
        dispatcher.wait(60)


def test_demo_tells_a_run_that_starts_again_from_one_that_continues(orcheo: OrcheoApi, tmp_path: Path) -> None:
    start_afresh(orcheo)
    variables = {**demo_variables(orcheo), "ORCHEO_DISPATCH_LOST_RUNS": "requeue"}
    redis_url = variables["REDIS_URL"]
    settings = Settings.load(
        postgres_dsn=variables["ORCHEO_POSTGRES_DSN"], redis_url=redis_url, slots_redis_url=redis_url
    )
    stack = DemoStack(tmp_path, variables, settings, orcheo, redis_url)
    workflow_id = ingest(orcheo, "agent", AGENT.read_text())
    with our_processes(tmp_path, variables) as processes, second_worker(stack) as second:
        wait_until_at_work([*processes, second])
        engine = make_engine(settings, role="demo", connections=1)
        try:
            found = play(stack, engine, [processes[-1], second], workflow_id)
        finally:
            engine.dispose()
    assert {f"step {step!r} was executed 2 times instead of 1" for step in _STEPS[:3]} <= set(found)
    assert "the trace has the run resumed after [], and step 'look_up ink' was in flight" in found
