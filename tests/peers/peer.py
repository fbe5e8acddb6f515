"""A system that executes runs: what an experiment needs of it."""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import ClassVar

import httpx
import psutil

from orcheo_dispatch.ops.sandbox.child import end, last_lines, launch
from tests.peers.environments import Environment
from tests.peers.ground import Ground

WORKFLOWS = Path(__file__).parent / "workflows"
_READY_SECONDS = 120.0
_PAUSE_SECONDS = 0.02
_INTO_THE_STEP_SECONDS = 0.4


class Worker:
    """A process that executes runs, with all that it has started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, role: str) -> None:
        self.role = role
        self._process = process
        self._log = log

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return when it is ready. Raises `RuntimeError` with its last lines where it ends or takes too long."""
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not ready: {last_lines(self._log, 20)}")
            time.sleep(_PAUSE_SECONDS)

    def says(self, text: str) -> bool:
        """Tell whether its log holds this."""
        return text in self._log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Return its id and those of its descendants."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root.pid, *(each.pid for each in root.children(recursive=True))]
        return []

    def pause(self) -> None:
        """Stop it with all its descendants."""
        self._signal(SIGSTOP)

    def continue_(self) -> None:
        """Let it go on."""
        self._signal(SIGCONT)

    def kill(self) -> None:
        """Kill it with all its descendants, as the loss of their host would."""
        # The root first, so that it starts no process that is missed.
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, SIGSTOP)
        self._signal(SIGKILL)
        end(self._process)

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Peer(ABC):
    """One system, on servers of its own."""

    name: ClassVar[str]
    environment: ClassVar[Environment]
    shares_a_database: ClassVar[bool] = True
    """Whether a second process can take over what the first one holds."""
    checkpoints: ClassVar[Sequence[str]] = ()
    """Tables of finished steps."""
    runs: ClassVar[Sequence[str]] = ()
    """Tables of runs."""
    ended: ClassVar[frozenset[str]]
    """Statuses of runs that have ended."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._started = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Hold what stays alive while workers are killed."""
        yield

    @abstractmethod
    def start(self, role: str) -> Worker:
        """Start a process that executes runs, as this role, and return when it is ready."""

    @abstractmethod
    def submit(self, log: Path) -> str:
        """Start a run whose steps write to `log`, and return its id."""

    @abstractmethod
    def status(self, run_id: str) -> str:
        """Return the status of a run, in the words of the system."""

    def wait_in_step(self) -> None:
        """Return when the moment to kill or pause the process has come; called at the begin of a step."""
        time.sleep(_INTO_THE_STEP_SECONDS)

    def launched(self, role: str, command: Sequence[str], variables: Mapping[str, str], folder: Path) -> Worker:
        """Start a program of the peer's environment, with a log of its own."""
        self._started += 1
        folder.mkdir(parents=True, exist_ok=True)
        log = self.ground.folder / f"{self.name.replace(' ', '-')}-{self._started}.log"
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        process = launch(
            [str(self.environment.programs / command[0]), *command[1:]],
            log=log,
            environment={**kept, "HOME": str(folder), "PYTHONPATH": str(WORKFLOWS), **variables},
            directory=folder,
        )
        return Worker(process, log, role)


def answers(url: str) -> bool:
    """Tell whether a server answers this with success."""
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).is_success
    except httpx.TransportError:
        return False
