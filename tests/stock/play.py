"""Makes a run of each workflow, has one worker execute them all, and reads what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import redis
from celery import Celery
from orcheo.graph.ingestion import FROZEN_IR_FORMAT
from orcheo.graph.ir import compile_workflow_to_ir

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.stock.kinds import Between, Kind, Stored, Trigger
from tests.stock.leftovers import Leftovers, leftovers, masked
from tests.stock.site import Site
from tests.support.database.runs import everything, execute
from tests.support.orcheo.orcheo_stack import WORKFLOWS, database_of, ended, ingest
from tests.support.processes.processes import until

_PUSH = "orcheo_backend.worker.tasks.execute_run"
_CRON = "0 * * * *"
_SET_CONFIG = "UPDATE workflow_runs SET payload = jsonb_set(payload, '{runnable_config}', %s) WHERE id = %s"
_NO_QUOTA = """UPDATE workspaces SET quotas = quotas || '{"max_workflows": 1000}'"""
_SLOTS = "orcheo:workspace:runs:*"


@dataclass(frozen=True, slots=True)
class Played:
    """What all runs have left, and what they share."""

    runs: dict[str, Leftovers]
    requests: dict[str, list[dict[str, Any]]]
    """What the site was asked, by workflow."""
    store: list[dict[str, Any]]
    """The graph store."""
    slots: int
    """Run slots that are still taken."""


class Player:
    """Plays the same workflows for one worker and then for another, on the same API and database."""

    def __init__(self, orcheo: OrcheoApi, site: Site, mongodb: str | None, kinds: Mapping[str, Kind]) -> None:
        self._orcheo = orcheo
        self._site = site
        self._mongodb = mongodb
        self._kinds = kinds
        self._database = database_of(orcheo)
        execute(self._database, _NO_QUOTA)
        self._workflows = {name: self._ingest(name, kind) for name, kind in kinds.items() if kind.between is None}

    def play(self, working: Callable[[], AbstractContextManager[object]], *, leaks: int = 0) -> Played:
        """Make the runs, and then have the worker of `working` execute them; it returns all slots but `leaks`.

        They are made before it takes any, so that what happens to a workflow in between happens for certain.
        """
        execute(self._database, "DELETE FROM store")
        spent = {name: self._ingest(name, kind) for name, kind in self._kinds.items() if kind.between is not None}
        workflows = {**self._workflows, **spent}
        runs = {name: self._run(name, kind, workflows[name]) for name, kind in self._kinds.items()}
        for name, kind in self._kinds.items():
            self._meddle(kind, workflows[name], runs[name])
        with working():
            for run in runs.values():
                ended(self._orcheo, run)
            # The stock worker ends the run first and its history after.
            until(partial(self._are_closed, list(runs.values())), what="the histories are closed")
            # The last slot is returned a moment after that.
            until(lambda: self._slots() <= leaks, what=f"all slots but {leaks} are returned")
        return Played(
            {name: leftovers(self._database, run["id"]) for name, run in runs.items()},
            self._site.taken(),
            masked(everything(self._database, "SELECT prefix, key, value FROM store ORDER BY prefix, key")),
            self._slots(),
        )

    def _ingest(self, name: str, kind: Kind) -> str:
        script = (WORKFLOWS / f"{kind.source}.py").read_text()
        workflow_id = ingest(self._orcheo, name, script, entrypoint=kind.entrypoint, runnable_config=kind.config)
        graph: dict[str, Any]
        match kind.stored:
            case Stored.FROZEN:
                graph = {"format": FROZEN_IR_FORMAT, "ir": compile_workflow_to_ir(script).model_dump()}
            case Stored.JSON:
                graph = {"nodes": [{"name": "start", "type": "SetVariableNode"}], "edges": [["START", "start"]]}
            case _:
                return workflow_id
        execute(
            self._database,
            "UPDATE workflow_versions SET payload = jsonb_set(payload, '{graph}', %s) WHERE workflow_id = %s",
            json.dumps(graph),
            workflow_id,
        )
        return workflow_id

    def _run(self, name: str, kind: Kind, workflow_id: str) -> Record:
        """Make a run as its trigger makes it, and push it as the API does."""
        where = {"site": self._site.under(kind.instead or name), "mongodb": self._mongodb}
        match kind.trigger:
            case Trigger.WEBHOOK:
                return self._orcheo.fire_webhook(workflow_id, {**kind.inputs, **where})
            case Trigger.MANUAL:
                return self._orcheo.dispatch_manually(workflow_id, {**kind.inputs, "body": where}, kind.run_config)
            case Trigger.LABELLED:
                inputs = {**kind.inputs, "body": where}
                return self._orcheo.dispatch_manually(workflow_id, inputs, kind.run_config, label="nightly import")
            case Trigger.CRON:
                self._orcheo.configure_cron(workflow_id, _CRON)
                runs = self._orcheo.dispatch_cron(_last_hour())
                # Else it would be due again for the next worker.
                self._orcheo.remove_cron(workflow_id)
                return next(run for run in runs if run["workflow_id"] == workflow_id)
            case Trigger.LISTENER:
                inputs = {**kind.inputs, "body": where}
                run = self._orcheo.create_run(workflow_id, inputs, kind.run_config, triggered_by="listener")
                with Celery(broker=self._orcheo.variables["REDIS_URL"]) as app:
                    app.send_task(_PUSH, args=(run["id"],), headers={"workspace_id": run["workspace_id"]})
                return run

    def _meddle(self, kind: Kind, workflow_id: str, run: Record) -> None:
        match kind.between:
            case Between.ARCHIVED:
                self._orcheo.archive(workflow_id)
            case Between.WORKFLOW_GONE:
                execute(self._database, "DELETE FROM workflows WHERE id = %s", workflow_id)
            case Between.VERSION_GONE:
                execute(self._database, "DELETE FROM workflow_versions WHERE id = %s", run["workflow_version_id"])
            case Between.BAD_CONFIG:
                execute(self._database, _SET_CONFIG, json.dumps({"recursion_limit": 10**9}), run["id"])

    def _are_closed(self, runs: list[Record]) -> bool:
        ids = [run["id"] for run in runs]
        query = "SELECT FROM execution_history WHERE execution_id = ANY (%s) AND status = 'running'"
        return not everything(self._database, query, ids)

    def _slots(self) -> int:
        with redis.Redis.from_url(self._orcheo.variables["ORCHEO_REDIS_URL"]) as client:
            return sum(int(client.get(key) or 0) for key in client.scan_iter(_SLOTS))


def _last_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
