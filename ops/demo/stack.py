"""The processes of the demo in one temporary folder: two servers, Orcheo's API and our processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from orcheo_dispatch.ops.sandbox.child import end, free_port, last_lines, launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.settings.model import Settings

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_PAUSE_SECONDS = 0.05
_AT_WORK = {
    ProcessKind.BEAT: "beat_started",
    ProcessKind.DISPATCHER: "dispatcher_started",
    ProcessKind.WORKER: "worker_started",
}
# A killed worker is noticed within seconds; the defaults are for hosts that may be slow.
RESUMING = {
    "ORCHEO_DISPATCH_LOST_RUNS": "resume",
    "ORCHEO_WORKER_LEASE": "3",
    "ORCHEO_WORKER_HEARTBEAT": "0.5",
}


@dataclass
class OurProcess:
    """One of `beat`, `dispatcher`, `worker`, started as an operator would."""

    kind: ProcessKind
    address: str
    """Where it answers /livez, /readyz and /metrics; a dispatcher has the status page there."""
    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, kind: ProcessKind, folder: Path, variables: dict[str, str], *, name: str | None = None) -> Self:
        """Start it; return at once. Its log is named by `name`, or by its kind."""
        log = folder / f"{name or kind}.log"
        command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", kind.value]
        port = free_port()
        environment = process_environment(
            {**variables, "ORCHEO_HEALTH_HOST": "127.0.0.1", "ORCHEO_HEALTH_PORT": str(port)}
        )
        process = launch(command, log=log, environment=environment, directory=folder)
        return cls(kind, f"http://127.0.0.1:{port}", log, process)

    def at_work(self) -> bool:
        """Return whether it is up. Raises `DispatchError` when it has ended."""
        if self.process.poll() is not None:
            raise DispatchError(f"{self.kind} ended with {self.process.returncode}: {last_lines(self.log)}")
        return self.log.exists() and _AT_WORK[self.kind] in self.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self.process, (signal.SIGTERM, _STOP_SECONDS))


@dataclass(frozen=True)
class DemoStack:
    """What runs, and how to reach it."""

    folder: Path
    variables: dict[str, str]
    settings: Settings
    api: OrcheoApi
    redis_url: str


@contextmanager
def servers() -> Iterator[tuple[Path, str, str]]:
    """Yield a scratch folder and the URLs of a Postgres and a Redis in it; nothing of them is left behind."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcheo-dispatch-demo-")))
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        redis = stack.enter_context(EmbeddedRedis(folder / "redis"))
        yield folder, postgres.url, redis.url


def demo_variables(api: OrcheoApi) -> dict[str, str]:
    """Return the environment of our processes: Orcheo's own variables, the API's address and `RESUMING`."""
    return {**api.variables, "ORCHEO_API_URL": api.url, "ORCHEO_DISPATCH_POLL_INTERVAL": "1", **RESUMING}


@contextmanager
def our_processes(folder: Path, variables: dict[str, str]) -> Iterator[list[OurProcess]]:
    """Start beat, dispatcher and worker; stop the worker first, so that it can settle what it runs."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(OurProcess.start(kind, folder, variables))
            for kind in (ProcessKind.BEAT, ProcessKind.DISPATCHER, ProcessKind.WORKER)
        ]


def second_worker(stack: DemoStack) -> OurProcess:
    """Start another worker; return at once."""
    return OurProcess.start(ProcessKind.WORKER, stack.folder, stack.variables, name="worker-2")


def upload(api: OrcheoApi, source: Path) -> str:
    """Upload a workflow, let it be triggered by its webhook, and return its id."""
    workflow_id = api.upload(source, source.stem)
    api.configure_webhook(workflow_id)
    return workflow_id


def wait_until_at_work(processes: Sequence[OurProcess]) -> None:
    """Return when all are up. Raises `DispatchError` with the last log lines."""
    deadline = time.monotonic() + _START_SECONDS
    for process in processes:
        while not process.at_work():
            if time.monotonic() > deadline:
                raise DispatchError(f"{process.kind} was not up in {_START_SECONDS:g} s: {last_lines(process.log)}")
            time.sleep(_PAUSE_SECONDS)
