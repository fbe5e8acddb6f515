"""One soak: the real stack, runs that arrive steadily, and a worker that is killed now and then."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import psycopg

from orcheo_dispatch.ops.demo import WORKFLOW
from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from tests.bench.arrivals import Fire, Template
from tests.bench.setting import ROOT, Setting
from tests.faults.supervisor import Supervisor, Unit
from tests.soak.curves import Curve
from tests.soak.sampler import Sampler

UNITS = ("beat", "dispatcher", "worker", "killed worker")
"""The last is killed now and then, so its curves are short."""
_SETTINGS = {"ORCHEO_DISPATCH_RETENTION": "60", "ORCHEO_DISPATCH_LEASE": "10", "ORCHEO_WORKER_LEASE": "10"}
"""With rows of the ledger kept for a minute, tables reach their final size within the warm-up."""
_REST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a soak has shown."""

    curves: dict[str, Curve]
    statuses: dict[str, int]
    """Number of runs by their final status."""
    kills: int
    crashes: list[str]
    """Processes that ended although nothing had asked them to, with their exit codes."""


def soak(*, seconds: float, every: float, per_second: float, kill_every: float, say: Callable[[str], None]) -> Result:
    """Run the stack for `seconds`, take a sample each `every` seconds, and wait for the end of all runs.

    `per_second` is the rate of new runs; a worker is killed each `kill_every` seconds. Raises what the thread that
    inserts runs has raised.
    """
    with ExitStack() as stack:
        setting = Setting(stack)
        template = Template(setting.api, setting.postgres.url, setting.workflow(WORKFLOW))
        setting.empty()
        setting.api.stop()
        supervisor = stack.enter_context(Supervisor(_units(setting), setting.folder))
        supervisor.wait_until_at_work()
        say("all processes are ready")
        fire = stack.enter_context(template.inserting())
        watch = stack.enter_context(psycopg.connect(setting.postgres.url, autocommit=True))
        sampler = Sampler(watch, UNITS[:-1])
        stopping = threading.Event()
        load = stack.enter_context(ThreadPoolExecutor(1, "load")).submit(_arrive, fire, per_second, stopping)
        kills = 0
        try:
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                if now >= (kills + 1) * kill_every:
                    kills += 1
                    supervisor.send(UNITS[-1], signal.SIGKILL)
                if load.done():
                    break
                sampler.take({unit: supervisor.pid(unit) for unit in UNITS[:-1]})
                time.sleep(max(0.0, every - (time.monotonic() - began - now)))
        finally:
            stopping.set()
        load.result()
        try:
            left = setting.until_terminal(seconds=_REST_SECONDS)
            say(f"all runs have ended, {left:.1f} s after the last one was inserted")
        except TimeoutError:
            # The statuses count them.
            say(f"not all runs have ended {_REST_SECONDS:g} s after the last one was inserted")
        unasked = [f"{each.unit}: {each.code}" for each in supervisor.exits if not each.asked]
        return Result(sampler.curves, setting.statuses(), kills, unasked)


def _units(setting: Setting) -> list[Unit]:
    environment = process_environment({**setting.variables, **_SETTINGS, "PYTHONPATH": str(ROOT)})
    made = []
    for name in UNITS:
        kind = name.rpartition(" ")[2]
        command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", kind]
        made.append(Unit(name, command, environment, f"{kind}_started"))
    return made


def _arrive(fire: Fire, per_second: float, stopping: threading.Event) -> None:
    """Insert runs at even intervals; those that are late come at once."""
    began, count = time.monotonic(), 0
    while not stopping.wait(max(0.0, began + count / per_second - time.monotonic())):
        fire()
        count += 1
