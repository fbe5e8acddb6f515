"""The processes of one release: started together, stopped one by one, killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from orcheo_dispatch.shared.schema.revision import newest_revision
from tests.faults.supervisor import RESTART_SECONDS, Supervisor, Unit
from tests.faults.system import Execution
from tests.upgrade.load import PACE
from tests.upgrade.releases import ROOT, Installed

THIS = Installed("this", [sys.executable, "-m", "orcheo_dispatch.ops.cli"], ROOT, newest_revision())
COUNTS = {"beat": 1, "dispatcher": 2, "worker": 2}
_EXECUTORS = {Execution.PLAY: "tests.faults.acts:play", Execution.ORCHEO: "orcheo"}
_CONCURRENCY = 6
_DRAIN_SECONDS = 15.0
"""More than the longest run takes."""
_LOOK_SECONDS = 0.02
_RESTART_SECONDS = 4 * RESTART_SECONDS


@dataclass(frozen=True, slots=True)
class Servers:
    """What the processes of both releases connect to, and where they write."""

    dsn: str = field(repr=False)
    broker: str
    slots: str
    folder: Path
    execution: Execution

    @property
    def side_effects(self) -> Path:
        """The file that runs append to."""
        return self.folder / "side-effects"

    def environment(self, path: Path, lost_runs: str) -> dict[str, str]:
        """Return the variables of a process; both releases know all of them."""
        variables = process_environment(
            {
                **orcheo_environment(self.dsn, self.broker, self.folder),
                "ORCHEO_REDIS_URL": self.slots,
                "ORCHEO_DISPATCH_POLL_INTERVAL": "0.3",
                "ORCHEO_DISPATCH_LEASE": str(PACE.lease),
                "ORCHEO_DISPATCH_LOST_RUNS": lost_runs,
                "ORCHEO_WORKER_CONCURRENCY": str(_CONCURRENCY),
                "ORCHEO_WORKER_HEARTBEAT": str(PACE.heartbeat),
                "ORCHEO_WORKER_LEASE": str(PACE.lease),
                "ORCHEO_WORKER_RUN_TIMEOUT": str(10 * PACE.lease),
                "ORCHEO_WORKER_CANCEL_GRACE": "1",
                "ORCHEO_WORKER_DRAIN_TIMEOUT": str(_DRAIN_SECONDS),
                "ORCHEO_WORKER_EXECUTOR": _EXECUTORS[self.execution],
                "TEST_SIDE_EFFECTS": str(self.side_effects),
                "PYTHONPATH": str(path),
            }
        )
        # Processes start dozens of times in a trial: only the first start is to compile what it imports.
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        return variables


class Fleet:
    """The processes of one release. Each start gives them new names, so that each log is of one of them."""

    def __init__(self, installed: Installed, servers: Servers, supervisor: Supervisor) -> None:
        self.installed = installed
        self.started: list[str] = []
        """Names of all that were ever started."""
        self._servers = servers
        self._supervisor = supervisor
        self._starts: Counter[str] = Counter()
        self._alive: dict[str, list[str]] = {kind: [] for kind in COUNTS}

    def start(self, *kinds: str, lost_runs: str) -> None:
        """Start the processes of these kinds; return when they are at work."""
        environment = self._servers.environment(self.installed.path, lost_runs)
        for kind in kinds:
            self._starts[kind] += 1
            for index in range(COUNTS[kind]):
                name = f"{self.installed.name}-{self._starts[kind]}-{kind}-{index}"
                self._supervisor.add(Unit(name, [*self.installed.command, kind], environment, f"{kind}_started"))
                self._alive[kind].append(name)
                self.started.append(name)
        self._supervisor.wait_until_at_work()

    def stop(self, *kinds: str) -> None:
        """Stop the processes of these kinds, one after the other; return when they have ended."""
        for kind in kinds:
            for name in self._alive[kind]:
                self._supervisor.retire(name)
            self._alive[kind] = []

    def replace(self, *kinds: str, lost_runs: str) -> None:
        """Start processes of these kinds with this setting, then stop those that there were."""
        before = {kind: self._alive[kind] for kind in kinds}
        for kind in kinds:
            self._alive[kind] = []
        self.start(*kinds, lost_runs=lost_runs)
        for name in (name for names in before.values() for name in names):
            self._supervisor.retire(name)

    def has(self, kind: str) -> bool:
        """Return whether processes of this kind are to run."""
        return bool(self._alive[kind])

    def pids(self) -> set[int]:
        """Return the ids of all processes that were ever started."""
        running = {self._supervisor.pid(name) for name in self.started}
        ended = {each.pid for each in list(self._supervisor.exits) if each.unit in self.started}
        return ended | {pid for pid in running if pid is not None}

    def kill(self, kind: str) -> int:
        """Kill a process of this kind with its children; return its process id. It is started again."""
        name = self._alive[kind][0]
        deadline = time.monotonic() + _RESTART_SECONDS
        while (pid := self._supervisor.send(name, Signals.SIGKILL)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} does not run")
            time.sleep(_LOOK_SECONDS)
        return pid

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command with these arguments."""
        return subprocess.Popen(
            [*self.installed.command, *arguments],
            env=self._servers.environment(self.installed.path, "fail"),
            cwd=self._servers.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def migrate(installed: Installed, dsn: str, folder: Path) -> None:
    """Create the schema of a release. Raises `CalledProcessError`."""
    variables: Mapping[str, str] = {
        "ORCHEO_POSTGRES_DSN": dsn,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "ORCHEO_REDIS_URL": "redis://127.0.0.1:1/0",
        "PYTHONPATH": str(installed.path),
    }
    subprocess.run(
        [*installed.command, "migrate"], env=process_environment(variables), cwd=folder, check=True, capture_output=True
    )
