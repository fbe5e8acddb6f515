"""Orcheo's real API as a child process, for the demo and the acceptance tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psycopg
from psycopg.types.json import Jsonb

from orcheo_dispatch.ops.sandbox.child import end, free_port, last_lines, launch
from orcheo_dispatch.ops.sandbox.orcheo_client import OrcheoClient
from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment, process_environment
from orcheo_dispatch.shared.errors import DispatchError

WORKSPACE = "default"
_LIMIT_RUNS = "UPDATE workspaces SET quotas = quotas || %s"
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_PAUSE_SECONDS = 0.05


class OrcheoApi(OrcheoClient):
    """The API on a free port, with one workspace that anonymous callers own, and what users do with it.

    `home` is a scratch folder: the API's log and its `HOME`. The API never outlives this process; start it
    on a thread that outlives it (see `orcheo_dispatch.ops.sandbox.child.launch`).
    """

    def __init__(self, dsn: str, redis_url: str, home: Path) -> None:
        """Choose a port; nothing is started yet."""
        self.port = free_port()
        self.log = home / "api.log"
        self.variables = orcheo_environment(dsn, redis_url, home)
        self._home = home
        self._dsn = dsn
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(f"http://127.0.0.1:{self.port}", process_environment(self.variables))

    @property
    def pid(self) -> int | None:
        """Return the API's process id, or None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Return once the API answers, its tables are there, and so is its workspace.

        About 6 s on an idle machine. Raises `DispatchError` with the last log lines.
        """
        if self.pid is not None:
            return self
        self._home.mkdir(parents=True, exist_ok=True)
        self._process = launch(
            [
                *(sys.executable, "-m", "uvicorn", "orcheo_backend.app:app"),
                *("--host", "127.0.0.1", "--port", str(self.port), "--no-access-log"),
            ],
            log=self.log,
            environment=process_environment(self.variables),
            directory=self._home,
        )
        try:
            self._wait_until_ready(self._process)
            if not self.workspaces():
                self.create_workspace(WORKSPACE)
            # The API makes the tables of workflows and runs when they are first asked for.
            self.workflows()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the API; return when it is gone. It can be started again, on the same port."""
        if self._process is not None:
            end(self._process, (signal.SIGTERM, _STOP_SECONDS))
            self._process = None

    def limit_runs(self, count: int) -> None:
        """Let each workspace have `count` runs that have not ended; Orcheo's default is 25, beyond it answers 429.

        In the table, for want of a route for it; counts from the next run on.
        """
        with psycopg.connect(self._dsn) as connection:
            connection.execute(_LIMIT_RUNS, (Jsonb({"max_concurrent_runs": count}),))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.close()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if process.poll() is not None:
                raise DispatchError(f"Orcheo's API ended with {process.returncode}: {last_lines(self.log)}")
            if time.monotonic() > deadline:
                raise DispatchError(f"Orcheo's API was not ready in {_START_SECONDS:g} s: {last_lines(self.log)}")
            time.sleep(_PAUSE_SECONDS)

    def _answers(self) -> bool:
        try:
            return self._http.get("/api/system/health").is_success
        except httpx.TransportError:
            return False
