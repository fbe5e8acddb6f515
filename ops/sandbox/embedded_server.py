"""Start, readiness, stop and kill of the embedded servers."""

from __future__ import annotations

import abc
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from orcheo_dispatch.ops.sandbox.child import end, free_port, last_lines
from orcheo_dispatch.shared.errors import DispatchError

_START_SECONDS = 30.0
_PAUSE_SECONDS = 0.01


class EmbeddedServer(abc.ABC):
    """A server in `directory`, on a port it keeps, that never outlives this process.

    `start` after `stop` or `kill` serves the same URL again. Start it on a thread that outlives it (see
    `orcheo_dispatch.ops.sandbox.child.launch`).
    """

    name: ClassVar[str]
    error: ClassVar[type[DispatchError]]
    death_signal: ClassVar[signal.Signals]

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / f"{self.name.lower()}.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Return the URL for clients."""

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """Return the version of the programs without starting a server."""

    @property
    def pid(self) -> int | None:
        """Return the server's process id, or None while it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process else None

    def start(self) -> Self:
        """Return once the server takes connections; do nothing where it runs already.

        Raises `error` with the server's last log lines.
        """
        if self.pid is not None:
            return self
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process = self._launch()
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop as an operator would; return when the server is gone."""
        if self._process is not None:
            end(self._process, *self._stop_signals())
            self._process = None

    def kill(self) -> None:
        """Stop as `kill -9` would; return when the server is gone."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abc.abstractmethod
    def _launch(self) -> subprocess.Popen[bytes]: ...

    @abc.abstractmethod
    def _ready(self, process: subprocess.Popen[bytes]) -> bool: ...

    @abc.abstractmethod
    def _stop_signals(self) -> tuple[tuple[signal.Signals, float], ...]: ...

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready(process):
            if process.poll() is not None:
                raise self.error(f"{self.name} ended with {process.returncode} at its start: {last_lines(self.log)}")
            if time.monotonic() > deadline:
                raise self.error(f"{self.name} was not ready in {_START_SECONDS:g} s: {last_lines(self.log)}")
            time.sleep(_PAUSE_SECONDS)
