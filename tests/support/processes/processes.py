"""Our own processes, started for real: `orcheo-dispatch beat | dispatcher | worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Self

import pytest

from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.processes.logbook import LOGBOOK

ROOT = Path(__file__).parents[3]
DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02
# Beat never connects to Postgres.
_NOBODYS_DSN = "postgresql://nobody@127.0.0.1:1/nothing"


def until[T](look: Callable[[], T], *, what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Look again and again until there is something to see; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        threading.Event().wait(_POLL_SECONDS)


class Process:
    """One of our processes; its log is read while it runs."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], source: Path = ROOT) -> None:
        self.lines: list[str] = []
        self._arguments, self._environment = arguments, environment
        self._process = subprocess.Popen(
            [sys.executable, "-W", "default", *arguments],
            env={**_clean_environment(), **environment},
            cwd=source,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.signal_group(Signals.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        LOGBOOK.keep(self._arguments, self.log, self._environment)
        if kind is not None:
            print(f"--- {self._process.args!r}\n" + "".join(self.lines), file=sys.stderr)

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return "".join(self.lines)

    def saw(self, text: str, *, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait until the log holds `text`."""
        until(
            lambda: text in self.log or self._process.poll() is not None, what=f"{text!r} in the log", seconds=seconds
        )
        assert text in self.log, f"ended with {self._process.poll()} before {text!r}"

    def signal(self, number: Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to it and to its children."""
        os.killpg(self._process.pid, number)

    def exit_code(self, *, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(seconds)

    def finish(self) -> None:
        """Wait until all that it wrote before its end has been read."""
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(iter(self._process.stdout.readline, ""))


class Stack:
    """Starts our processes on one database and one Redis, each with no more rights than it needs."""

    def __init__(self, database: Database, redis_url: str, side_effects: Path) -> None:
        self.database = database
        self.side_effects = side_effects
        self.environment = {
            "ORCHEO_POSTGRES_DSN": database.dsn,
            "REDIS_URL": redis_url,
            "ORCHEO_REDIS_URL": redis_url,
            "ORCHEO_WORKER_EXECUTOR": "tests.support.runners.executors:play",
            "ORCHEO_WORKER_HEARTBEAT": "0.2",
            "ORCHEO_WORKER_LEASE": "3",
            "ORCHEO_WORKER_CANCEL_GRACE": "1",
            "ORCHEO_DISPATCH_POLL_INTERVAL": "0.2",
            "TEST_SIDE_EFFECTS": str(side_effects),
            "PYTHONPATH": str(ROOT),
        }

    def command(self, *arguments: str, **variables: str) -> Process:
        """Start the command with these arguments, and these variables on top."""
        return Process(["-m", "orcheo_dispatch.ops.cli", *arguments], self.environment_of(*arguments, **variables))

    def environment_of(self, command: str, *_: str, **variables: str) -> dict[str, str]:
        """Return the environment of one command: with the DSN of the role that has its rights, and no others."""
        environment = {**self.environment, **variables}
        if environment["ORCHEO_POSTGRES_DSN"] == self.database.dsn:
            environment["ORCHEO_POSTGRES_DSN"] = self._dsn_of(command, environment["ORCHEO_WORKER_EXECUTOR"])
        return environment

    def _dsn_of(self, command: str, executor: str) -> str:
        match command:
            case "beat":
                return _NOBODYS_DSN
            case "worker" if executor != "orcheo":
                return self.database.dsn_of(Kind.WORKER)
            case "dispatcher" | "poll" | "check" | "cancel" | "fail" | "requeue" | "isolate" | "run":
                return self.database.dsn_of(Kind.DISPATCHER)
            case "policy" | "pause" | "unpause" | "maintenance":
                return self.database.dsn_of(Kind.DISPATCHER)
            case "status" | "runs" | "operations" | "alerts":
                return self.database.dsn_of(Kind.DASHBOARD)
        # `migrate` makes tables. Orcheo's executor does too, and reads workflows and credentials.
        return self.database.dsn

    @contextmanager
    def running(self, kind: str, **variables: str) -> Iterator[Process]:
        """Start a beat, dispatcher or worker and wait until it is at work."""
        with self.command(kind, **variables) as process:
            process.saw({"beat": "beat_started", "dispatcher": "dispatcher_started", "worker": "worker_started"}[kind])
            yield process

    def noted(self, event: str) -> list[str]:
        """Return the runs that noted this event, in order."""
        if not self.side_effects.exists():
            return []
        lines = [line.split() for line in self.side_effects.read_text().splitlines()]
        return [run_id for run_id, _, noted in lines if noted == event]


def _clean_environment() -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
    # The last are set by `make coverage`, so that the processes that tests start are measured as well.
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("COVERAGE_")}
