"""The system under test: which processes it is made of, and how they are set."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from tests.faults.links import Server
from tests.faults.plan import BEATS, DISPATCHERS, WORKERS, Pace
from tests.faults.supervisor import Unit
from tests.histories.recorder import VARIABLE

_ROOT = Path(__file__).parents[2]
_CONCURRENCY = 6
RUN_TIMEOUT_LEASES = 3.0
CANCEL_GRACE_SECONDS = 1.0
DRAIN_SECONDS = 3.0


class System(StrEnum):
    """Who executes the runs."""

    OURS = "ours"
    STOCK = "stock"


class Execution(StrEnum):
    """What executes a run in our workers; the stock worker has only Orcheo."""

    PLAY = "play"
    ORCHEO = "orcheo"


_EXECUTORS = {Execution.PLAY: "tests.faults.acts:play", Execution.ORCHEO: "tests.faults.fenced_orcheo:FencedOrcheo"}
_STOCK = [sys.executable, "-m", "celery", "-A", "orcheo_backend.worker.celery_app"]


def calls_in(folder: Path) -> Path:
    """Return the file in which all processes record their calls to the database."""
    return folder / "calls.jsonl"


def process_names(system: System) -> list[str]:
    """Return the names of the processes: kind and index."""
    counts = {"beat": BEATS, "dispatcher": DISPATCHERS, "worker": WORKERS}
    if system is System.STOCK:
        counts = {"beat": 1, "worker": WORKERS}
    return [f"{kind}-{index}" for kind, count in counts.items() for index in range(count)]


class Addresses(Protocol):
    """Knows where each process finds the servers."""

    def url(self, process: str, server: Server) -> str:
        """Return the server's URL as this process is to see it."""
        ...


def units(
    system: System,
    execution: Execution,
    *,
    pace: Pace,
    lost_runs: str,
    links: Addresses,
    folder: Path,
    side_effects: Path,
    names: Sequence[str] = (),
) -> list[Unit]:
    """Return the processes of the system, or those of these names, each on links of its own."""
    made = []
    for name in names or process_names(system):
        kind = name.partition("-")[0]
        dsn, broker = links.url(name, Server.POSTGRES), links.url(name, Server.REDIS)
        variables = {
            **orcheo_environment(dsn, broker, folder),
            "ORCHEO_REDIS_URL": links.url(name, Server.SLOTS),
            "TEST_SIDE_EFFECTS": str(side_effects),
            VARIABLE: str(calls_in(folder)),
            "PYTHONPATH": str(_ROOT),
        }
        if system is System.OURS:
            variables |= _our_settings(pace, lost_runs, execution)
            command, says = [sys.executable, "-m", "tests.histories", kind], f"{kind}_started"
        else:
            command, says = _stock(kind, folder / f"{name}.schedule")
        made.append(Unit(name, command, process_environment(variables), says))
    return made


def _our_settings(pace: Pace, lost_runs: str, execution: Execution) -> Mapping[str, str]:
    return {
        "ORCHEO_DISPATCH_POLL_INTERVAL": "0.3",
        "ORCHEO_DISPATCH_LEASE": str(pace.lease),
        "ORCHEO_DISPATCH_LOST_RUNS": lost_runs,
        "ORCHEO_WORKER_CONCURRENCY": str(_CONCURRENCY),
        "ORCHEO_WORKER_HEARTBEAT": str(pace.heartbeat),
        "ORCHEO_WORKER_LEASE": str(pace.lease),
        "ORCHEO_WORKER_RUN_TIMEOUT": str(RUN_TIMEOUT_LEASES * pace.lease),
        "ORCHEO_WORKER_CANCEL_GRACE": str(CANCEL_GRACE_SECONDS),
        "ORCHEO_WORKER_DRAIN_TIMEOUT": str(DRAIN_SECONDS),
        "ORCHEO_WORKER_EXECUTOR": _EXECUTORS[execution],
    }


def _stock(kind: str, schedule: Path) -> tuple[list[str], str]:
    if kind == "beat":
        return [*_STOCK, "beat", "--schedule", str(schedule), "--loglevel=INFO"], "beat: Starting..."
    return [*_STOCK, "worker", f"--concurrency={_CONCURRENCY}", "--loglevel=INFO"], "ready."
