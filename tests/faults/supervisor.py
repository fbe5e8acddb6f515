"""Starts processes and starts them again half a second after their end, as systemd would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from orcheo_dispatch.ops.sandbox.child import launch

RESTART_SECONDS = 0.5
STOP_SECONDS = 25.0
"""After SIGTERM, before SIGKILL: the stop timeout of a service manager."""
_LOOK_SECONDS = 0.02
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A process as a service manager knows it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    says: str
    """What its log holds once it is at work."""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process. `asked` where a fault or the trial's end asked for it; `hung` where it did not obey."""

    unit: str
    pid: int
    code: int
    at: float
    asked: bool
    hung: bool


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    asked: bool = False
    hung: bool = False
    kill_at: float = float("inf")


class Supervisor:
    """Runs units from one thread, which outlives them all: a child dies with the thread that started it."""

    def __init__(self, units: Sequence[Unit], folder: Path) -> None:
        self.exits: list[Exit] = []
        self._units = {unit.name: unit for unit in units}
        self._folder = folder
        self._running: dict[str, _Running] = {}
        self._start_at = dict.fromkeys(self._units, 0.0)
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def log(self, name: str) -> Path:
        """Return the log of a unit, of all its processes one after the other."""
        return self._folder / f"{name}.log"

    def logs(self) -> dict[str, Path]:
        """Return the logs by unit."""
        return {name: self.log(name) for name in self._units}

    def knows(self, name: str) -> bool:
        """Return whether there is such a unit."""
        return name in self._units

    def pid(self, name: str) -> int | None:
        """Return the process of a unit, or None while there is none."""
        with self._lock:
            running = self._running.get(name)
            return running.process.pid if running is not None and running.process.poll() is None else None

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Send a signal; SIGTERM to the process alone, any other to its whole group. Return whom it went to."""
        with self._lock:
            pid = self.pid(name)
            if pid is None:
                return None
            running = self._running[name]
            running.asked |= number in {signal.SIGTERM, signal.SIGKILL}
            if number is signal.SIGTERM:
                running.kill_at = min(running.kill_at, time.monotonic() + STOP_SECONDS)
                running.process.send_signal(number)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)
            return pid

    def add(self, unit: Unit) -> None:
        """Start one more unit. No two have the same name, also if one of them is retired."""
        with self._lock:
            self._units[unit.name] = unit
            self._start_at[unit.name] = 0.0

    def retire(self, name: str) -> None:
        """Stop a unit for good: it is not started again. Return when it has ended."""
        with self._lock:
            self._start_at.pop(name)
            self.send(name, signal.SIGTERM)
        while self.pid(name) is not None:
            time.sleep(_LOOK_SECONDS)

    def wait_until_at_work(self) -> None:
        """Return when each unit has said that it is, or has been retired."""
        deadline = time.monotonic() + _START_SECONDS
        for unit in list(self._units.values()):
            while unit.name in self._start_at and unit.says not in self._said(unit.name):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{unit.name} is not at work: {self._said(unit.name)[-1000:]}")
                time.sleep(_LOOK_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._look()
            with self._lock:
                for name, at in self._start_at.items():
                    if name not in self._running and time.monotonic() >= at:
                        self._running[name] = _Running(self._launch(self._units[name]))
        for name in list(self._running):
            self.send(name, signal.SIGCONT)
            self.send(name, signal.SIGTERM)
        while self._running:
            self._look()
            time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        """Note who has ended, and kill who was asked to end and did not."""
        with self._lock:
            for name, running in list(self._running.items()):
                code = running.process.poll()
                if code is None and time.monotonic() > running.kill_at:
                    running.hung, running.kill_at = True, float("inf")
                    self.send(name, signal.SIGKILL)
                if code is not None:
                    pid = running.process.pid
                    # Children that it left behind.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                    self.exits.append(Exit(name, pid, code, time.time(), running.asked, running.hung))
                    del self._running[name]
                    if name in self._start_at:
                        self._start_at[name] = time.monotonic() + RESTART_SECONDS

    def _launch(self, unit: Unit) -> subprocess.Popen[bytes]:
        return launch(unit.command, log=self.log(unit.name), environment=unit.environment, directory=self._folder)

    def _said(self, name: str) -> str:
        log = self.log(name)
        return log.read_text(errors="replace") if log.exists() else ""
