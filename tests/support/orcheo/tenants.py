"""Two workspaces of one API: what their members do, and every way in which runs of one of them are made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import redis
from celery import Celery

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from orcheo_dispatch.ops.sandbox.orcheo_environment import process_environment
from tests.support.database.databases import Database
from tests.support.database.runs import execute, one
from tests.support.orcheo.orcheo_stack import WORKFLOWS, database_of

_TIMEOUT_SECONDS = 60.0
_LISTENER = Path(__file__).parents[2] / "stock" / "listener.py"
_PUSH = "orcheo_backend.worker.tasks.execute_run"
_SLOTS = "orcheo:workspace:runs:"
_MOVE = """
UPDATE workflow_runs SET workspace_id = %s, payload = jsonb_set(payload, '{workspace_id}', %s) WHERE id = %s
"""
# All that a run leaves anywhere, as one text.
_LEFT = """
WITH run AS (SELECT %s::text AS id)
SELECT string_agg(t.row, ' ') AS text FROM run, LATERAL (
    SELECT to_jsonb(r)::text AS row FROM workflow_runs AS r WHERE r.id = run.id
     UNION ALL SELECT to_jsonb(h)::text FROM execution_history AS h WHERE h.execution_id = run.id
     UNION ALL SELECT to_jsonb(s)::text FROM execution_history_steps AS s WHERE s.execution_id = run.id
     UNION ALL SELECT to_jsonb(c)::text FROM checkpoints AS c WHERE c.thread_id = run.id
     UNION ALL SELECT encode(b.blob, 'escape') FROM checkpoint_blobs AS b WHERE b.thread_id = run.id
     UNION ALL SELECT encode(w.blob, 'escape') FROM checkpoint_writes AS w WHERE w.thread_id = run.id
) AS t
"""


class Tenant:
    """A member of one workspace. Every refusal of the API is an error."""

    def __init__(self, orcheo: OrcheoApi, slug: str, workspace_id: str) -> None:
        self.orcheo = orcheo
        self.slug, self.workspace_id = slug, workspace_id
        self.database: Database = database_of(orcheo)
        self._http = httpx.Client(
            base_url=f"{orcheo.url}/api",
            headers={"X-Orcheo-Workspace": slug},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections to the API."""
        self._http.close()

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the API within the workspace."""
        answer = self._http.request(method, path, json=body)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def keep_secret(self, name: str, secret: str) -> str:
        """Keep a secret in the vault of the workspace; return its id."""
        credential = {"name": name, "provider": "test", "secret": secret, "access": "shared"}
        return str(self.call("POST", "/credentials", credential)["id"])

    def workflow_that_tells(self, reference: str) -> str:
        """Make a workflow whose output is the secret of this name or id; return the workflow's id."""
        workflow_id = str(self.call("POST", "/workflows", {"name": f"tells {reference}"})["id"])
        script = (WORKFLOWS / "secret.py").read_text().replace("[[a_secret]]", f"[[{reference}]]")
        version = {"script": script, "entrypoint": "build", "created_by": "test"}
        self.call("POST", f"/workflows/{workflow_id}/versions/ingest", version)
        webhook = {"allowed_methods": ["POST"], "rate_limit": None}
        self.call("PUT", f"/workflows/{workflow_id}/triggers/webhook/config", webhook)
        return workflow_id

    def webhook(self, workflow_id: str) -> str:
        """Fire its webhook, at the address that names no workspace."""
        return str(self.call("POST", f"/workflows/{workflow_id}/triggers/webhook", {})["id"])

    def webhook_of_workspace(self, workflow_id: str) -> str:
        """Fire its webhook, at the address that names the workspace."""
        return str(self.call("POST", f"{self.orcheo.url}/hooks/{self.slug}/{workflow_id}", {})["id"])

    def cron(self, workflow_id: str) -> str:
        """Have it triggered by time, once."""
        path = f"/workflows/{workflow_id}/triggers/cron/config"
        self.call("PUT", path, {"expression": "0 * * * *", "timezone": "UTC"})
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        runs = self.call("POST", "/triggers/cron/dispatch", {"now": now.isoformat()})
        self.call("DELETE", path)
        return str(next(run["id"] for run in runs if run["workflow_id"] == workflow_id))

    def manual(self, workflow_id: str, *, label: str | None = None, actor: str = "manual", runs: int = 1) -> str:
        """Dispatch it by hand; return the last run."""
        items: list[Record] = [{"input_payload": {}}] * runs
        request: Record = {"workflow_id": workflow_id, "actor": actor, "label": label, "runs": items}
        return str(self.call("POST", "/triggers/manual/dispatch", request)[-1]["id"])

    def listener(self, workflow_id: str) -> str:
        """Have it triggered by a message of a chat platform."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(_LISTENER), workflow_id],
            env=process_environment(self.orcheo.variables),
            capture_output=True,
            check=True,
            text=True,
        )
        return done.stdout.split()[-1]

    def created(self, workflow_id: str, *, label: str = "api") -> str:
        """Create a run as the command and the canvas do; the API does not push it."""
        versions = self.call("GET", f"/workflows/{workflow_id}/versions")
        request = {"workflow_version_id": versions[-1]["id"], "triggered_by": label, "input_payload": {}}
        return str(self.call("POST", f"/workflows/{workflow_id}/runs", request)["id"])

    def chatkit(self, workflow_id: str, *, actor: str) -> str:
        """Trigger it as ChatKit's clients do."""
        body = {"message": "hi", "actor": actor}
        return str(self.call("POST", f"/chatkit/workflows/{workflow_id}/trigger", body)["id"])

    def moved(self, workflow_id: str, *, to: str | None, pushed_as: str | None) -> str:
        """Make a row of a run that names another workspace than its workflow's, or none, and push it."""
        run_id = self.created(workflow_id, label="webhook")
        execute(self.database, _MOVE, to, json.dumps(to), run_id)
        with redis.Redis.from_url(self.orcheo.variables["ORCHEO_REDIS_URL"]) as client:
            # As if it had been counted where it says that it belongs.
            client.decr(_SLOTS + self.workspace_id)
            if to:
                client.incr(_SLOTS + to)
        headers = {"workspace_id": pushed_as} if pushed_as else {}
        with Celery(broker=self.orcheo.variables["REDIS_URL"]) as app:
            app.send_task(_PUSH, args=(run_id,), headers=headers)
        return run_id


type Way = Callable[[Tenant, Tenant, str], str]
"""Makes a run of a workflow of the first tenant; the second is the other."""

WAYS: dict[str, Way] = {
    "webhook": lambda a, _, workflow: a.webhook(workflow),
    "webhook of the workspace": lambda a, _, workflow: a.webhook_of_workspace(workflow),
    "webhook, called by the other": lambda _, b, workflow: b.webhook(workflow),
    "cron": lambda a, _, workflow: a.cron(workflow),
    "manual": lambda a, _, workflow: a.manual(workflow),
    "manual, dispatched by the other": lambda _, b, workflow: b.manual(workflow),
    "manual batch": lambda a, _, workflow: a.manual(workflow, runs=2),
    "labelled": lambda a, _, workflow: a.manual(workflow, label="nightly import"),
    "labelled, of an actor": lambda a, _, workflow: a.manual(workflow, label="chatkit", actor="ada"),
    "mcp": lambda a, _, workflow: a.manual(workflow, label="mcp", actor="mcp"),
    "listener": lambda a, _, workflow: a.listener(workflow),
    "created": lambda a, _, workflow: a.created(workflow),
    "created, labelled": lambda a, _, workflow: a.created(workflow, label="nightly import"),
    "chatkit as api": lambda a, _, workflow: a.chatkit(workflow, actor="api"),
    "chatkit as webhook": lambda a, _, workflow: a.chatkit(workflow, actor="webhook"),
    "chatkit as a user": lambda a, _, workflow: a.chatkit(workflow, actor="ada@example.com"),
    "no workspace": lambda a, _, workflow: a.moved(workflow, to=None, pushed_as=None),
    "no workspace, pushed under one": lambda a, _, workflow: a.moved(workflow, to=None, pushed_as=a.workspace_id),
    "wrong workspace": lambda a, b, workflow: a.moved(workflow, to=b.workspace_id, pushed_as=b.workspace_id),
    "wrong workspace, pushed under the right one": lambda a, b, workflow: a.moved(
        workflow, to=b.workspace_id, pushed_as=a.workspace_id
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and whose secrets are in what it left."""

    status: str
    error: str | None
    secrets: frozenset[str]


def outcome(database: Database, run_id: str, secrets: Mapping[str, str]) -> Outcome:
    """Return how a run stands; `secrets` are by name."""
    row = one(database, "SELECT status, payload ->> 'error' AS error FROM workflow_runs WHERE id = %s", run_id)
    text = one(database, _LEFT, run_id)["text"]
    return Outcome(row["status"], row["error"], frozenset(name for name, secret in secrets.items() if secret in text))


def slots_of(orcheo: OrcheoApi) -> dict[str, int]:
    """Return the run slots that are taken, by workspace."""
    with redis.Redis.from_url(orcheo.variables["ORCHEO_REDIS_URL"]) as client:
        counts = {
            key.decode().removeprefix(_SLOTS): int(client.get(key) or 0) for key in client.scan_iter(f"{_SLOTS}*")
        }
    return {workspace: count for workspace, count in counts.items() if count}
