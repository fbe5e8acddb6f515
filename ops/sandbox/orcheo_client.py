"""Use Orcheo through its own API and its own command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from orcheo_dispatch.shared.errors import DispatchError

# Records of Orcheo's API, as its JSON has them.
type Record = dict[str, Any]

_HTTP_TIMEOUT_SECONDS = 30.0
# The command imports most of Orcheo, 5 s and more on a busy machine.
_COMMAND_TIMEOUT_SECONDS = 120.0
_SHOWN_CHARACTERS = 500


class OrcheoClient:
    """Calls to the API at `url`. Every refusal is a `DispatchError` that says what was asked and answered."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        """Take the API's URL and the environment for the `orcheo` command, a whole one."""
        self.url = url
        # Wide, so that tables of the command break no id over two lines.
        self._environment = {**environment, "ORCHEO_API_URL": url, "COLUMNS": "240"}
        self._http = httpx.Client(base_url=url, timeout=_HTTP_TIMEOUT_SECONDS, trust_env=False)

    def close(self) -> None:
        """Close the connections to the API."""
        self._http.close()

    def add_credential(self, name: str, secret: str) -> None:
        """Keep a secret in the vault for all workflows of the workspace."""
        credential = {"name": name, "provider": "test", "secret": secret, "access": "shared"}
        self._record("POST", "/api/credentials", credential, expected=201)

    def create_workspace(self, slug: str) -> Record:
        """Create a workspace owned by the caller of the API."""
        return self._record("POST", "/api/workspaces", {"slug": slug, "name": slug.title()}, expected=201)

    def workspaces(self) -> list[Record]:
        """Return the caller's workspaces."""
        found: list[Record] = self._answer("GET", "/api/workspaces/me").json()["memberships"]
        return found

    def workflows(self) -> list[Record]:
        """Return the caller's workflows."""
        found: list[Record] = self._answer("GET", "/api/workflows").json()
        return found

    def upload(self, source: Path, name: str, *, entrypoint: str = "build") -> str:
        """Upload a workflow as `orcheo workflow upload` and return its id."""
        printed = self.command("workflow", "upload", str(source), "--entrypoint", entrypoint, "-n", name)
        # Two lines for people come before the record.
        return str(json.loads(printed[printed.index("\n{") :])["id"])

    def show(self, workflow_id: str) -> str:
        """Return what `orcheo workflow show` prints for people."""
        return self.command("--human", "workflow", "show", workflow_id)

    def configure_webhook(self, workflow_id: str) -> None:
        """Let the workflow be triggered by POST, without a rate limit."""
        configuration = {"allowed_methods": ["POST"], "rate_limit": None}
        self._record("PUT", f"/api/workflows/{workflow_id}/triggers/webhook/config", configuration)

    def configure_cron(self, workflow_id: str, expression: str) -> None:
        """Let the workflow be triggered by a cron expression, in UTC."""
        configuration = {"expression": expression, "timezone": "UTC"}
        self._record("PUT", f"/api/workflows/{workflow_id}/triggers/cron/config", configuration)

    def remove_cron(self, workflow_id: str) -> None:
        """Let the workflow be triggered by time no longer."""
        self._answer("DELETE", f"/api/workflows/{workflow_id}/triggers/cron/config")

    def fire_webhook(self, workflow_id: str, body: Mapping[str, Any]) -> Record:
        """Post to the workflow's webhook as a third party would, and return the pending run."""
        return self._record("POST", f"/api/workflows/{workflow_id}/triggers/webhook", body, expected=202)

    def fire_webhooks(
        self, workflow_id: str, bodies: Sequence[Mapping[str, Any]], *, at_a_time: int = 8
    ) -> list[Record]:
        """Fire a webhook a body and return the runs in the order of the bodies."""
        with ThreadPoolExecutor(at_a_time) as pool:
            return list(pool.map(lambda body: self.fire_webhook(workflow_id, body), bodies))

    def create_run(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any],
        runnable_config: Mapping[str, Any] | None = None,
        *,
        triggered_by: str = "cli",
    ) -> Record:
        """Create a run of the workflow's newest version as the command and the canvas do."""
        versions = self._answer("GET", f"/api/workflows/{workflow_id}/versions").json()
        newest = max(versions, key=lambda version: int(version["version"]))
        request = {
            "workflow_version_id": newest["id"],
            "triggered_by": triggered_by,
            "input_payload": dict(inputs),
            "runnable_config": runnable_config,
        }
        return self._record("POST", f"/api/workflows/{workflow_id}/runs", request, expected=201)

    def dispatch_manually(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any],
        runnable_config: Mapping[str, Any] | None = None,
        *,
        label: str | None = None,
    ) -> Record:
        """Create a run of the workflow's newest version as the canvas does, or with a label as the MCP server does."""
        item: Record = {"input_payload": dict(inputs)}
        if runnable_config is not None:
            # Older releases know no such field.
            item["runnable_config"] = runnable_config
        request = {"workflow_id": workflow_id, "runs": [item], "label": label}
        runs = self._answer("POST", "/api/triggers/manual/dispatch", request)
        record: Record = runs.json()[0]
        return record

    def dispatch_cron(self, now: datetime) -> list[Record]:
        """Have the API create the runs that are due at `now`, as Orcheo's scheduler does each minute."""
        runs: list[Record] = self._answer("POST", "/api/triggers/cron/dispatch", {"now": now.isoformat()}).json()
        return runs

    def cancel(self, run_id: str, *, reason: str = "cancelled by a user", actor: str = "user") -> Record:
        """Cancel a run that is pending or running and return it."""
        return self._record("POST", f"/api/runs/{run_id}/cancel", {"actor": actor, "reason": reason})

    def run(self, run_id: str) -> Record:
        """Return a run."""
        return self._record("GET", f"/api/runs/{run_id}")

    def runs(self, workflow_id: str, *, limit: int = 200) -> list[Record]:
        """Return the workflow's newest runs, 200 at most."""
        found: list[Record] = self._answer("GET", f"/api/workflows/{workflow_id}/runs?limit={limit}").json()
        return found

    def history(self, run_id: str) -> Record:
        """Return the recorded steps of a run that began."""
        return self._record("GET", f"/api/executions/{run_id}/history")

    def trace(self, run_id: str) -> Record:
        """Return the trace of a run that began, as the canvas shows it."""
        return self._record("GET", f"/api/executions/{run_id}/trace")

    def archive(self, workflow_id: str) -> None:
        """Archive a workflow."""
        self._record("DELETE", f"/api/workflows/{workflow_id}")

    def command(self, *arguments: str) -> str:
        """Run the `orcheo` command and return what it printed."""
        program = Path(sys.executable).with_name("orcheo")
        command = [str(program), "--no-update-check", *arguments]
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=_COMMAND_TIMEOUT_SECONDS,
        )
        if done.returncode != 0:
            printed = (done.stderr or done.stdout).strip()[-_SHOWN_CHARACTERS:]
            raise DispatchError(f"orcheo {' '.join(arguments)} ended with {done.returncode}: {printed}")
        return done.stdout

    def _record(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, expected: int = 0) -> Record:
        record: Record = self._answer(method, path, body, expected=expected).json()
        return record

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, expected: int = 0
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise DispatchError(f"{method} {path}: {error}") from error
        if not answer.is_success or (expected and answer.status_code != expected):
            raise DispatchError(f"{method} {path} answered {answer.status_code}: {answer.text[:_SHOWN_CHARACTERS]}")
        return answer
