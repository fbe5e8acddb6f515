"""Starts runs of a shape, kills what a case says, and reads what became of the run."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from signal import Signals
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.shared.errors import DispatchError
from tests.resume.shapes import SHAPES, Killed
from tests.support.database.databases import Database
from tests.support.database.runs import everything, one
from tests.support.orcheo.orcheo_stack import ingest
from tests.support.orcheo.stored_steps import Execution, Stored, install, read_executions, read_stored
from tests.support.processes.processes import DEADLINE_SECONDS, Process, Stack, until

SCRIPT = (Path(__file__).parent / "workflows" / "steps.py").read_text()
SETTINGS = {
    "ORCHEO_DISPATCH_LOST_RUNS": "resume",
    "ORCHEO_WORKER_HEARTBEAT": "0.5",
    "ORCHEO_WORKER_LEASE": "3",
    "ORCHEO_WORKER_DRAIN_TIMEOUT": "0.2",
    "ORCHEO_WORKER_CANCEL_GRACE": "1",
    "ORCHEO_DISPATCH_POLL_INTERVAL": "0.2",
}
_LOOK_SECONDS = 0.0005
_HOLDER = """
SELECT p.pid FROM orcheo_dispatch.process AS p JOIN orcheo_dispatch.dispatch AS d ON d.worker_id = p.id
 WHERE d.run_id = %s
"""


class Workers:
    """The workers that are alive; a new one is started for each that is killed."""

    def __init__(self, stack: Stack, exits: ExitStack) -> None:
        self.alive: list[Process] = []
        self._stack = stack
        self._exits = exits

    def wait_for(self, count: int) -> None:
        """Return when at least so many are at work."""
        while len(self.alive) < count:
            self.start()
        for worker in self.alive[:count]:
            worker.saw("worker_started")

    def start(self) -> None:
        """Start one, without waiting for it."""
        self.alive.append(self._exits.enter_context(self._stack.command("worker")))

    def kill(self, pid: int) -> None:
        """Kill the main process of a worker, and start another."""
        (worker,) = (each for each in self.alive if each.pid == pid)
        worker.signal(Signals.SIGKILL)
        worker.exit_code()
        self.alive.remove(worker)
        self.start()


@contextmanager
def workers(stack: Stack) -> Iterator[Workers]:
    """Yield the workers, with one at work; stop them all."""
    with ExitStack() as exits:
        found = Workers(stack, exits)
        found.wait_for(1)
        # The first worker has made the tables of checkpoints.
        with psycopg.connect(stack.database.dsn, autocommit=True) as connection:
            install(connection)
        yield found


@dataclass
class RunInFolder:
    """A run, and the folder that its steps write to."""

    run_id: str
    folder: Path
    database: Database

    def hold(self, step: str) -> Path:
        """Return the file that a step waits for the removal of."""
        return hold_in(self.folder, step)

    def wait_for(self, line: str) -> None:
        """Return as soon as a step has noted this."""
        log, deadline = self.folder / "log", time.monotonic() + DEADLINE_SECONDS
        while not (log.exists() and f"{line}\n" in log.read_text()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {DEADLINE_SECONDS:g} s: {line}")
            time.sleep(_LOOK_SECONDS)

    def wait_until_stored(self) -> None:
        """Return when the inputs of the run are stored: from then on it is resumed, and not started again."""
        query = "SELECT count(*) AS n FROM checkpoints WHERE thread_id = %s"
        until(lambda: one(self.database, query, self.run_id)["n"], what="the run has a checkpoint")

    def ended(self) -> dict[str, Any]:
        """Wait until the run is terminal and its slot returned; return its row, as the API stored it."""

        def look() -> dict[str, Any] | None:
            row = one(self.database, "SELECT status, payload FROM workflow_runs WHERE id = %s", self.run_id)
            return None if row["status"] in ("pending", "running") else row

        row = until(look, what=f"run {self.run_id} is terminal")
        assert row is not None
        until(lambda: self.ledger()["slot"] == "returned", what="the run slot is returned")
        return row

    def ledger(self) -> dict[str, Any]:
        """Return the run's row of the ledger."""
        return one(self.database, "SELECT * FROM orcheo_dispatch.dispatch WHERE run_id = %s", self.run_id)

    def state(self) -> str:
        """Return the final state as text, without what differs between runs: id, folder and headers of the webhook."""
        state = self.ended()["payload"]["output_payload"]["final_state"]
        state = {key: value for key, value in state.items() if key != "config"}
        state["inputs"] = state["inputs"]["body"]
        return json.dumps(state, sort_keys=True).replace(str(self.folder), "FOLDER")

    def executions(self) -> list[Execution]:
        """Return the executions of steps, in the order of their begins."""
        return read_executions(self.folder / "executions")

    def labels(self) -> Counter[str]:
        """Return how often each step was executed."""
        return Counter(each.label for each in self.executions())

    def stored(self) -> list[Stored]:
        """Return when its steps were stored."""
        with psycopg.connect(self.database.dsn, autocommit=True) as connection:
            return [each for each in read_stored(connection) if each.run_id == self.run_id]

    def trace(self) -> list[dict[str, Any]]:
        """Return the steps of its trace."""
        query = "SELECT payload FROM execution_history_steps WHERE execution_id = %s ORDER BY step_index"
        return [row["payload"] for row in everything(self.database, query, self.run_id)]

    def traced(self) -> Counter[str]:
        """Return the nodes in its trace."""
        return Counter(key for payload in self.trace() for key in payload if key not in ("resumed", "status"))

    def trace_status(self) -> str:
        """Return the status of its record."""
        query = "SELECT status FROM execution_history WHERE execution_id = %s"
        return str(one(self.database, query, self.run_id)["status"])


@dataclass
class Ground:
    """Where the cases take place; everything that a case does not kill stays for the next one."""

    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    api: OrcheoApi
    stack: Stack
    workers: Workers
    workflows: dict[tuple[str, bool], str]
    """Their ids by shape; of each shape one for runs whose runner is killed, which isolates the workflow."""
    _undisturbed: dict[str, RunInFolder] = field(default_factory=dict)

    @cached_property
    def lease(self) -> float:
        """How long a worker holds a run without a heartbeat (seconds)."""
        return float(self.stack.environment["ORCHEO_WORKER_LEASE"])

    def start(self, shape: str, folder: Path, *held: str, alone: bool = False) -> RunInFolder:
        """Start a run in which these steps wait. `alone`: its runner is going to be killed."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            # A folder for each try: the API may have made the run and not have said so.
            attempt = folder / f"{len(list(folder.iterdir()))}"
            attempt.mkdir()
            for step in held:
                hold_in(attempt, step).touch()
            try:
                run = self.api.fire_webhook(self.workflows[shape, alone], {"folder": str(attempt)})
            except DispatchError:
                # Its connections were broken when Postgres was killed.
                for step in held:
                    hold_in(attempt, step).unlink()
                if time.monotonic() > deadline:
                    raise
                continue
            return RunInFolder(run["id"], attempt, self.stack.database)

    def undisturbed(self, shape: str, folder: Path) -> RunInFolder:
        """Return a run of this shape during which nothing is killed."""
        if shape not in self._undisturbed:
            folder.mkdir()
            lasting = SHAPES[shape].steps[1]
            run = self.start(shape, folder, lasting)
            run.wait_for(f"begin {lasting}")
            time.sleep(SHAPES[shape].leases * self.lease)
            run.hold(lasting).unlink()
            run.ended()
            self._undisturbed[shape] = run
        return self._undisturbed[shape]

    def kill(self, killed: Killed, run: RunInFolder) -> None:
        """Kill it; a server is up again on return."""
        match killed:
            case Killed.WORKER:
                self.workers.kill(one(self.stack.database, _HOLDER, run.run_id)["pid"])
            case Killed.RUNNER:
                with suppress(ProcessLookupError):
                    os.kill(run.executions()[-1].pid, Signals.SIGKILL)
            case Killed.POSTGRES:
                self.postgres.kill()
                self.postgres.start()
            case Killed.REDIS:
                self.redis.kill()
                self.redis.start()


def workflows_of(api: OrcheoApi) -> dict[tuple[str, bool], str]:
    """Make the workflows, and return their ids by shape and by whether the runners of their runs are killed."""
    return {
        (shape, alone): ingest(api, f"resume {shape}{' alone' * alone}", SCRIPT, entrypoint=SHAPES[shape].entrypoint)
        for shape in SHAPES
        for alone in (False, True)
    }


def hold_in(folder: Path, step: str) -> Path:
    """Return the file that a step of the run in this folder waits for the removal of."""
    return folder / f"hold-{step.replace(' ', '-')}"
