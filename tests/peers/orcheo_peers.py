"""Orcheo's runs, executed by orcheo-dispatch and by Orcheo's own Celery worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_environment import orcheo_environment
from tests.peers.environments import PROJECT
from tests.peers.ground import Ground
from tests.peers.peer import WORKFLOWS, Peer, Worker
from tests.support.database.databases import make_orcheo_tables, migrate
from tests.support.orcheo.orcheo_stack import ApiOnDatabase, ingest


class _OrcheoPeer(Peer):
    environment = PROJECT
    checkpoints = ("checkpoints", "checkpoint_writes", "checkpoint_blobs")
    runs = ("workflow_runs",)
    ended = frozenset({"succeeded", "failed", "cancelled"})

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._home = ground.folder / "orcheo"
        self._api: OrcheoApi = ApiOnDatabase(ground.database, ground.redis_url, self._home)
        self._workflow_id = ""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        make_orcheo_tables(self.ground.database, self.ground.redis_url)
        migrate(self.ground.database)
        with self._api:
            self._workflow_id = ingest(self._api, "chain", (WORKFLOWS / "orcheo_chain.py").read_text())
            yield

    def submit(self, log: Path) -> str:
        return str(self._api.fire_webhook(self._workflow_id, {"log": str(log)})["id"])

    def status(self, run_id: str) -> str:
        return str(self._api.run(run_id)["status"])

    def _variables(self, role: str) -> Mapping[str, str]:
        return orcheo_environment(self.ground.dsn(role), self.ground.redis_url, self._home)


class OrcheoDispatch(_OrcheoPeer):
    """This project, with its defaults: lease 30 s, `resume`."""

    name = "orcheo-dispatch"

    @contextmanager
    def prepared(self) -> Iterator[None]:
        with super().prepared():
            dispatcher = self._command("dispatcher", self.ground.database.dsn, "dispatcher_started")
            try:
                yield
            finally:
                dispatcher.kill()

    def start(self, role: str) -> Worker:
        return self._command("worker", self.ground.dsn(role), "worker_started", role)

    def _command(self, kind: str, dsn: str, says: str, role: str = "") -> Worker:
        variables = {
            **orcheo_environment(dsn, self.ground.redis_url, self._home),
            "ORCHEO_WORKER_EXECUTOR": "orcheo",
            "ORCHEO_DISPATCH_LOST_RUNS": "resume",
        }
        worker = self.launched(role, ["python", "-m", "orcheo_dispatch.ops.cli", kind], variables, self._home)
        worker.wait_until(lambda: worker.says(says))
        return worker


class OrcheoWorker(_OrcheoPeer):
    """Orcheo's own worker, as its package sets it: late acknowledgement, visibility timeout one hour."""

    name = "Orcheo's own worker"
    app: ClassVar[str] = "orcheo_backend.worker.celery_app"

    def start(self, role: str) -> Worker:
        command = ["python", "-m", "celery", "-A", self.app, "worker", "--concurrency=2", "--loglevel=INFO"]
        worker = self.launched(role, command, self._variables(role), self._home)
        worker.wait_until(lambda: worker.says("ready."))
        return worker


class OrcheoWorkerRedelivered(OrcheoWorker):
    """The same with a visibility timeout of 10 s, so that Redis delivers the message again within the limit."""

    name = "Orcheo's own worker, visibility timeout 10 s"
    app = "short_visibility"
