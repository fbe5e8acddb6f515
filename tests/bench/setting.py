"""The servers, Orcheo's API and the processes that a measurement uses: the same, with the same settings, for all."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from orcheo_dispatch.ops.sandbox.child import end, last_lines, launch
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from orcheo_dispatch.shared.schema.migrate import migrate
from orcheo_dispatch.shared.settings.model import Settings
from tests.bench.usage import Used, until

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 300.0
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_MAX_RUNS_OF_WORKSPACE = 10_000_000
_CONNECTIONS = 300
_FIVE_TIMES = stop_after_attempt(5)
_STOCK = [sys.executable, "-m", "celery", "-A", "orcheo_backend.worker.celery_app"]

# Of a run: what a round leaves behind, in the API's tables, LangGraph's and ours.
_TABLES_OF_RUNS = """
SELECT c.oid::regclass::text AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND (n.nspname, c.relname) IN (
       ('public', 'workflow_runs'), ('public', 'execution_history'), ('public', 'execution_history_steps'),
       ('public', 'checkpoints'), ('public', 'checkpoint_blobs'), ('public', 'checkpoint_writes'),
       ('orcheo_dispatch', 'dispatch'), ('orcheo_dispatch', 'retry'), ('orcheo_dispatch', 'question'))
"""
# Two questions for two indexes; the second is asked only when the first says no.
_LIVE = """
SELECT EXISTS (SELECT FROM workflow_runs WHERE status = 'pending')
    OR EXISTS (SELECT FROM workflow_runs WHERE status = 'running') AS live
"""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: rounds that count, whether sizes are tiny, and else the share of the full sizes."""

    rounds: int = 2
    quick: bool = False
    share: float = 1.0

    def size(self, full: int, quick: int) -> int:
        """Return `full`, or the share of it that is wanted, or `quick` for a smoke test."""
        return quick if self.quick else max(quick, round(self.share * full))


@dataclass(frozen=True, slots=True)
class Started:
    """A process that the benchmark started. `group` is what its use of the machine is entered under."""

    group: str
    process: subprocess.Popen[bytes]
    log: Path
    says: str = ""
    """What its log holds once it is at work."""

    def at_work(self) -> bool:
        """Return whether it is up. Raises `RuntimeError` when it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.group} ended with {self.process.returncode}: {last_lines(self.log)}")
        return self.log.exists() and self.says in self.log.read_text(errors="replace")


@dataclass
class Running:
    """Processes that run beside the servers."""

    setting: Setting
    processes: list[Started] = field(default_factory=list)

    def pids(self, *groups: str) -> list[int]:
        """Return the process ids of these groups, or of all."""
        return [each.process.pid for each in self.processes if not groups or each.group in groups]

    def used(self) -> Used:
        """Begin to count CPU seconds by group, `postgres` and `redis` too; `stop()` it before the processes end."""
        names = sorted({each.group for each in self.processes})
        groups = {name: (lambda name=name: self.pids(name)) for name in names}
        return Used({**groups, **self.setting.server_groups()})


class Setting:
    """One Postgres, one Redis, one API; each measurement begins with `empty()`."""

    def __init__(self, stack: ExitStack) -> None:
        """Start the servers; whatever is started lives until `stack` is closed."""
        self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="orcheo-dispatch-bench-")))
        self.postgres = stack.enter_context(
            EmbeddedPostgres(self.folder / "postgres", durable=True, max_connections=_CONNECTIONS)
        )
        self.redis = stack.enter_context(EmbeddedRedis(self.folder / "redis"))
        self._stack = stack
        self._api: OrcheoApi | None = None
        self._workflows: dict[Path, str] = {}
        self._number = 0
        self.connect()
        stack.callback(self._disconnect)

    def connect(self) -> None:
        """Connect to Orcheo's database; again where the server was restarted."""
        self._connection = psycopg.connect(
            self.postgres.url, application_name="bench", autocommit=True, row_factory=dict_row
        )

    @property
    def api(self) -> OrcheoApi:
        """Return Orcheo's API, started at its first use, with our schema beside its tables; it takes 10 s."""
        if self._api is None:
            api = OrcheoApi(self.postgres.url, self.redis.url, self.folder / "orcheo")
            self._api = self._stack.enter_context(api)
            self._api.limit_runs(_MAX_RUNS_OF_WORKSPACE)
            migrate(Settings.load(postgres_dsn=self.postgres.url, redis_url=self.redis.url))
        return self._api.start()

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of our processes and of Orcheo's: the servers' addresses, and what Orcheo needs."""
        if self._api is None:
            _ = self.api
        assert self._api is not None
        return {**self._api.variables, "ORCHEO_API_URL": self._api.url}

    @contextmanager
    def without_api(self) -> Iterator[None]:
        """Stop the API meanwhile: for measurements that it has no part in."""
        api = self.api
        api.stop()
        try:
            yield
        finally:
            api.start()

    def workflow(self, source: Path) -> str:
        """Return the id of this workflow, uploaded at its first use, with a webhook."""
        if source not in self._workflows:
            workflow_id = self.api.upload(source, source.stem)
            self.api.configure_webhook(workflow_id)
            self._workflows[source] = workflow_id
        return self._workflows[source]

    def database(self, name: str) -> str:
        """Create a database on the same server, for a peer, and return its URL. An earlier one is dropped."""
        self._connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return urlunsplit(urlsplit(self.postgres.url)._replace(path=f"/{name}"))

    def rows(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a query on Orcheo's database."""
        cursor = self._connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Return the one value of a query."""
        ((value,),) = (row.values() for row in self.rows(query, parameters))
        return value

    def transaction(self) -> AbstractContextManager[object]:
        """Commit what `rows` does in the block at its end, at once."""
        return self._connection.transaction()

    def empty(self) -> None:
        """Forget all runs and messages; no process may run."""
        self.forget_runs()
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()

    def forget_runs(self) -> None:
        """Forget all runs, none of which is under way, and leave Postgres nothing to write for them; Redis stays."""
        if self._api is None:
            _ = self.api
        tables = ", ".join(row["name"] for row in self.rows(_TABLES_OF_RUNS))
        # A poll may hold one of the tables and wait for another; Postgres then ends one of the two.
        for attempt in Retrying(retry=retry_if_exception_type(psycopg.errors.DeadlockDetected), stop=_FIVE_TIMES):
            with attempt:
                self.rows(f"TRUNCATE {tables}")
        self.rows("CHECKPOINT")

    def until_terminal(self, *, seconds: float = DEADLINE_SECONDS) -> float:
        """Wait until no run is pending or running, and return how long that took from now on."""
        began = time.monotonic()
        until(lambda: not self.value(_LIVE), seconds=seconds, what="end of all runs", pause=0.2)
        return time.monotonic() - began

    def statuses(self) -> dict[str, int]:
        """Return the runs by status."""
        found = self.rows("SELECT status, count(*) AS runs FROM workflow_runs GROUP BY status")
        return {row["status"]: row["runs"] for row in found}

    @contextmanager
    def ours(
        self, variables: Mapping[str, str] | None = None, *, beats: int = 1, dispatchers: int = 1, workers: int = 1
    ) -> Iterator[Running]:
        """Run our processes, as an operator starts them, with these variables on top of the defaults.

        Groups `beat`, `dispatcher`, `worker`. Returns when all are up; workers are up before a dispatcher starts.
        """
        environment = {**self.variables, **(variables or {})}
        with ExitStack() as stack:
            running = Running(self)
            for kind, count in (("worker", workers), ("beat", beats), ("dispatcher", dispatchers)):
                command = [sys.executable, "-m", "orcheo_dispatch.ops.cli", kind]
                started = [
                    stack.enter_context(self.process(kind, command, says=f"{kind}_started", **environment))
                    for _ in range(count)
                ]
                wait_until_at_work(started)
                running.processes += started
            yield running

    @contextmanager
    def stock(self, *, concurrency: int = 2) -> Iterator[Running]:
        """Run Orcheo's own worker, fed by the API's push in queue `celery`. Group `worker`; returns when it is up."""
        command = [*_STOCK, "worker", f"--concurrency={concurrency}", "--loglevel=INFO"]
        with self.process("worker", command, says="ready.", **self.variables) as started:
            wait_until_at_work([started])
            yield Running(self, [started])

    @contextmanager
    def process(self, group: str, command: Sequence[str], *, says: str = "", **variables: str) -> Iterator[Started]:
        """Start any process in a folder of its own; it is told to end, and ends, at the end of the block."""
        self._number += 1
        folder = self.folder / f"{group}-{self._number}"
        folder.mkdir()
        environment = process_environment({"PYTHONPATH": str(ROOT), **variables})
        log = folder / "log"
        process = launch(command, log=log, environment=environment, directory=folder)
        try:
            yield Started(group, process, log, says)
        finally:
            end(process, (signal.SIGTERM, _STOP_SECONDS))

    def server_groups(self) -> dict[str, Any]:
        """Return the servers' process ids by name, for `Used`."""
        return {"postgres": lambda: [self.postgres.pid or 0], "redis": lambda: [self.redis.pid or 0]}

    def _disconnect(self) -> None:
        self._connection.close()


def wait_until_at_work(processes: Sequence[Started]) -> None:
    """Return when all are up. Raises `RuntimeError` or `TimeoutError`."""
    for each in processes:
        until(each.at_work, seconds=_START_SECONDS, what=f"{each.group} at work", pause=0.02)
