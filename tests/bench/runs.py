"""Pending runs as the API writes them: inserted straight, or fired through it once and put back for each round."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import redis
from orcheo.models import WorkflowRun

from tests.bench.setting import Setting

WORKFLOW_ID = "6f1d3c62-5a53-4d4c-9a39-0d3f9e9a7c11"
VERSION_ID = "0f5d8a70-2f0e-4d43-8b7c-3a1a52f5b001"
WORKSPACE_ID = "a1f8f6de-4f0c-4a51-93a4-5a1b6a0f7d01"

_PUSHES = "celery"
_SLOTS = "orcheo:workspace:runs:*"

# A run begins only in the workspace of its workflow.
_INSERT_WORKFLOW = """
INSERT INTO workflows (id, is_archived, payload, created_at, updated_at, workspace_id)
VALUES (%(workflow)s, false, '{}', now(), now(), %(workspace)s) ON CONFLICT (id) DO NOTHING
"""
_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT i.id, %(workflow)s, %(version)s, 'pending', 'webhook',
       %(payload)s::jsonb || jsonb_build_object('id', i.id, 'created_at', orcheo_dispatch.iso(i.at),
                                                'updated_at', orcheo_dispatch.iso(i.at)), i.at, i.at, %(workspace)s
  FROM (SELECT gen_random_uuid()::text AS id, now() - make_interval(secs => 0.001 * (%(count)s::int - n)) AS at
          FROM generate_series(1, %(count)s::int) AS n) AS i
"""


def insert(setting: Setting, count: int) -> None:
    """Insert pending runs, each holding a run slot, for an executor that executes nothing."""
    run = WorkflowRun(
        workflow_id=UUID(WORKFLOW_ID),
        workflow_version_id=UUID(VERSION_ID),
        triggered_by="webhook",
        input_payload={"body": {"name": "Ada"}, "headers": {"content-type": "application/json"}, "query_params": {}},
        workspace_id=WORKSPACE_ID,
    )
    run.record_event(actor="webhook", action="run_created")
    parameters = {
        "workflow": WORKFLOW_ID,
        "version": VERSION_ID,
        "workspace": WORKSPACE_ID,
        "payload": json.dumps(run.model_dump(mode="json")),
        "count": count,
    }
    with redis.Redis.from_url(setting.redis.url) as client:
        client.incrby(f"orcheo:workspace:runs:{WORKSPACE_ID}", count)
    with setting.transaction():
        setting.rows(_INSERT_WORKFLOW, parameters)
        setting.rows(_INSERT, parameters)
        setting.rows("ANALYZE workflow_runs")


class Fired:
    """Runs fired once through the API's webhook, with the messages that the API pushed and the slots that it took."""

    def __init__(self, setting: Setting, workflow: Path, count: int) -> None:
        self._setting = setting
        self.count = count
        setting.empty()
        setting.api.fire_webhooks(setting.workflow(workflow), [{"name": f"Ada {n}"} for n in range(count)])
        setting.rows("DROP TABLE IF EXISTS bench_fired")
        setting.rows("CREATE TABLE bench_fired AS SELECT * FROM workflow_runs ORDER BY created_at")
        with redis.Redis.from_url(setting.redis.url) as client:
            # The oldest last, where it is taken from; the other keys are Celery's own.
            self._pushed: list[bytes] = client.lrange(_PUSHES, 0, -1)
            self._slots: list[bytes] = client.keys(_SLOTS)

    def restore(self, count: int | None = None) -> None:
        """Make them pending again as they were when the last one had been fired, all at once; or the first `count`."""
        number = self.count if count is None else count
        with self._setting.transaction():
            self._setting.rows(
                "INSERT INTO workflow_runs SELECT * FROM bench_fired ORDER BY created_at LIMIT %(count)s",
                {"count": number},
            )
            self._setting.rows("ANALYZE workflow_runs")
        with redis.Redis.from_url(self._setting.redis.url) as client:
            for key in self._slots:
                client.incrby(key, number)
            if self._pushed:
                client.rpush(_PUSHES, *self._pushed[-number:])
