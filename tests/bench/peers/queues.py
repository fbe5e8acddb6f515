"""The peers' queues: made, filled and counted."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from sqlalchemy import create_engine

from tests.bench.setting import Setting

INPUTS: Mapping[str, Any] = {"body": {"name": "Ada"}, "headers": {"content-type": "application/json"}}


@dataclass(frozen=True, slots=True)
class Progress:
    """How many jobs have ended, and the seconds from the first that was taken to the last that ended."""

    ended: int
    seconds: float


class Queue(Protocol):
    """A queue of a peer, in a database of its own."""

    dsn: str

    def fill(self, count: int) -> None:
        """Forget all jobs, and put `count` no-op jobs in, as the peer's own call does it."""
        ...

    def progress(self) -> Progress:
        """Return how far the workers are."""
        ...


@dataclass
class Procrastinate:
    """Procrastinate's queue."""

    setting: Setting
    dsn: str = field(init=False)

    def __post_init__(self) -> None:
        self.dsn = self.setting.database("procrastinate")
        os.environ["BENCH_DSN"] = self.dsn
        self._peer = importlib.import_module("tests.bench.peers.procrastinate_app")
        asyncio.run(self._prepare())

    def fill(self, count: int) -> None:
        """Forget all jobs and defer `count`, by batch."""
        _execute(self.dsn, "TRUNCATE procrastinate_jobs, procrastinate_events RESTART IDENTITY CASCADE")
        asyncio.run(self._defer(count))
        _settle_down(self.dsn)

    def progress(self) -> Progress:
        """Return what its events say."""
        return _progress(
            self.dsn,
            "SELECT count(*) FILTER (WHERE type = 'succeeded'),"
            " EXTRACT(epoch FROM max(at) FILTER (WHERE type = 'succeeded') - min(at) FILTER (WHERE type = 'started'))"
            " FROM procrastinate_events",
        )

    def command(self, concurrency: int) -> list[str]:
        """Return the command of a worker."""
        program = [sys.executable, "-m", "procrastinate", "--log-level", "warning"]
        app = "tests.bench.peers.procrastinate_app.app"
        return [*program, "--app", app, "worker", "--concurrency", str(concurrency)]

    async def _prepare(self) -> None:
        async with self._peer.app.open_async():
            await self._peer.app.schema_manager.apply_schema_async()

    async def _defer(self, count: int) -> None:
        async with self._peer.app.open_async():
            await self._peer.noop.batch_defer_async(*[dict(INPUTS) for _ in range(count)])


@dataclass
class PgQueuer:
    """PgQueuer's queue."""

    setting: Setting
    dsn: str = field(init=False)

    def __post_init__(self) -> None:
        self.dsn = self.setting.database("pgqueuer")
        asyncio.run(self._queries("install"))
        asyncio.run(self._queries("optimize_autovacuum"))

    def fill(self, count: int) -> None:
        """Forget all jobs and enqueue `count`, in one statement."""
        _execute(self.dsn, "TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics")
        payload = json.dumps(INPUTS).encode()
        asyncio.run(self._queries("enqueue", ["noop"] * count, [payload] * count, [0] * count))
        _settle_down(self.dsn)

    def progress(self) -> Progress:
        """Return what its log says."""
        return _progress(
            self.dsn,
            "SELECT count(*) FILTER (WHERE status = 'successful'),"
            " EXTRACT(epoch FROM max(created) FILTER (WHERE status = 'successful')"
            " - min(created) FILTER (WHERE status = 'picked')) FROM pgqueuer_log",
        )

    def command(self) -> list[str]:
        """Return the command of a worker; what it is set to comes by variables."""
        return [sys.executable, "-m", "tests.bench.peers.pgqueuer_app"]

    async def _queries(self, call: str, *arguments: Any) -> None:
        asyncpg = importlib.import_module("asyncpg")
        connection = await asyncpg.connect(self.dsn)
        try:
            driver = importlib.import_module("pgqueuer.db").AsyncpgDriver(connection)
            await getattr(importlib.import_module("pgqueuer.queries").Queries(driver), call)(*arguments)
        finally:
            await connection.close()


@dataclass
class Awa:
    """Awa's queue, in its append-only storage ("queue storage")."""

    setting: Setting
    dsn: str = field(init=False)

    def __post_init__(self) -> None:
        self.dsn = self.setting.database("awa")

    def fill(self, count: int) -> None:
        """Make the database anew, since its tables are not to be emptied by hand, and enqueue `count` by COPY."""
        self.dsn = self.setting.database("awa")
        asyncio.run(self._enqueue(count))
        _settle_down(self.dsn)

    def progress(self) -> Progress:
        """Return what its view of ended jobs says."""
        return _progress(
            self.dsn,
            "SELECT count(*) FILTER (WHERE state = 'completed'),"
            " EXTRACT(epoch FROM max(finalized_at) - min(attempted_at)) FROM awa.terminal_jobs",
        )

    def command(self) -> list[str]:
        """Return the command of a worker."""
        return [sys.executable, "-m", "tests.bench.peers.awa_app"]

    async def _enqueue(self, count: int) -> None:
        peer = importlib.import_module("tests.bench.peers.awa_app")
        client = importlib.import_module("awa").AsyncClient(self.dsn)
        await client.migrate()
        await client.install_queue_storage()
        await client.enqueue_many_copy([peer.Noop(**INPUTS) for _ in range(count)], queue=peer.QUEUE)
        await client.close()


@dataclass
class Dbos:
    """DBOS's queue of workflows without steps."""

    setting: Setting
    dsn: str = field(init=False)

    def __post_init__(self) -> None:
        self.dsn = self.setting.database("dbos")
        environment = {**os.environ, "BENCH_DSN": self.dsn}
        subprocess.run([*self.command(), "prepare"], env=environment, check=True, capture_output=True)

    def fill(self, count: int) -> None:
        """Forget all workflows and enqueue `count`, in one transaction."""
        _execute(self.dsn, "TRUNCATE dbos.workflow_status CASCADE")
        client = importlib.import_module("dbos").DBOSClient(system_database_url=self.dsn)
        options = {"queue_name": "noop", "workflow_name": "noop", "app_version": "bench"}
        engine = create_engine(self.dsn.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            for _ in range(count):
                client.enqueue_in_transaction(connection, options, *INPUTS.values())
        engine.dispose()
        client.destroy()
        _settle_down(self.dsn)

    def progress(self) -> Progress:
        """Return what its table of workflows says."""
        return _progress(
            self.dsn,
            "SELECT count(*) FILTER (WHERE status = 'SUCCESS'),"
            " (max(updated_at) FILTER (WHERE status = 'SUCCESS') - min(started_at_epoch_ms)) / 1000.0"
            " FROM dbos.workflow_status",
        )

    def command(self) -> list[str]:
        """Return the command of a worker."""
        return [sys.executable, "-m", "tests.bench.peers.dbos_app"]


def _execute(dsn: str, query: str) -> None:
    with psycopg.connect(dsn, application_name="bench", autocommit=True) as connection:
        connection.execute(query)


def _settle_down(dsn: str) -> None:
    _execute(dsn, "ANALYZE")
    _execute(dsn, "CHECKPOINT")


def _progress(dsn: str, query: str) -> Progress:
    with psycopg.connect(dsn, application_name="bench", autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return Progress(int(row[0]), float(row[1] or 0.0))
