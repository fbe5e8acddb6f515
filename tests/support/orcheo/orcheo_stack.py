"""Orcheo's real API with our three processes beside it, as an operator runs them: with the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from orcheo_dispatch.shared.errors import DispatchError
from tests.support.database.databases import Database
from tests.support.database.runs import execute
from tests.support.processes.processes import Stack, until

WORKFLOWS = Path(__file__).parents[2] / "acceptance" / "workflows"
_HTTP_TIMEOUT_SECONDS = 60.0
_LIVE = {"pending", "running"}


class ApiOnDatabase(OrcheoApi):
    """The API on a database of which the tests know more than its DSN."""

    def __init__(self, database: Database, redis_url: str, home: Path) -> None:
        super().__init__(database.dsn, redis_url, home)
        self.database = database


def database_of(orcheo: OrcheoApi) -> Database:
    """Return the database that the API is on."""
    if isinstance(orcheo, ApiOnDatabase):
        return orcheo.database
    dsn = orcheo.variables["ORCHEO_POSTGRES_DSN"]
    return Database(urlsplit(dsn).path.lstrip("/"), dsn)


def stack_beside(orcheo: OrcheoApi) -> Stack:
    """Return our processes on the API's database and Redis, with Orcheo itself as the executor."""
    stack = Stack(database_of(orcheo), orcheo.variables["REDIS_URL"], Path(os.devnull))
    stack.environment = {**orcheo.variables, "ORCHEO_WORKER_EXECUTOR": "orcheo"}
    return stack


def start_afresh(orcheo: OrcheoApi) -> None:
    """Drop the runs, pushes and slots that other tests have left behind, and have the API open its history store.

    At its first use that store locks the tables of the trace, and a request may lose a deadlock with a worker.
    """
    execute(database_of(orcheo), "DELETE FROM workflow_runs")
    execute(database_of(orcheo), "DELETE FROM orcheo_dispatch.dispatch")
    with redis.Redis.from_url(orcheo.variables["REDIS_URL"]) as client:
        client.flushdb()
    with pytest.raises(DispatchError, match="answered 404"):
        orcheo.history("none")


def upload(orcheo: OrcheoApi, **sources: str) -> dict[str, str]:
    """Make workflows of sources in the folder `workflows`, with a webhook each; return their ids by name.

    As `orcheo workflow upload` does it, through the API, without the seconds that the command takes to start.
    """
    return {name: ingest(orcheo, name, (WORKFLOWS / f"{source}.py").read_text()) for name, source in sources.items()}


def ingest(
    orcheo: OrcheoApi,
    name: str,
    script: str,
    *,
    entrypoint: str | None = "build",
    runnable_config: Record | None = None,
) -> str:
    """Make a workflow of a script, with a webhook, and return its id."""
    workflow_id: str = _post(orcheo, "", {"name": name})["id"]
    version = {"script": script, "entrypoint": entrypoint, "runnable_config": runnable_config, "created_by": "test"}
    _post(orcheo, f"/{workflow_id}/versions/ingest", version)
    orcheo.configure_webhook(workflow_id)
    return workflow_id


def ended(orcheo: OrcheoApi, run: Record) -> Record:
    """Wait until a run is terminal and return it as the API shows it."""

    def look() -> Record | None:
        seen = orcheo.run(run["id"])
        return None if seen["status"] in _LIVE else seen

    found = until(look, what=f"run {run['id']} is terminal")
    assert found is not None
    return found


def _post(orcheo: OrcheoApi, path: str, body: Record) -> Record:
    answer = httpx.post(f"{orcheo.url}/api/workflows{path}", json=body, timeout=_HTTP_TIMEOUT_SECONDS)
    assert answer.is_success, answer.text
    record: Record = answer.json()
    return record
