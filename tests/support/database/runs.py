"""Runs as the API creates them, and what the tables say of them afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
from orcheo.models import WorkflowRun
from psycopg.rows import dict_row
from sqlalchemy import Engine

from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.database.databases import Database

WORKFLOW_ID = "6f1d3c62-5a53-4d4c-9a39-0d3f9e9a7c11"
VERSION_ID = "0f5d8a70-2f0e-4d43-8b7c-3a1a52f5b001"
WORKSPACE_ID = "a1f8f6de-4f0c-4a51-93a4-5a1b6a0f7d01"

# Nobody may execute a run of a workflow that is not there.
_INSERT_WORKFLOW = """
INSERT INTO workflows (id, handle, is_archived, payload, created_at, updated_at, workspace_id)
VALUES (%(id)s, NULL, %(archived)s, '{}', now(), now(), %(owner)s) ON CONFLICT (id) DO NOTHING
"""
# A second apart, so that their order is known.
_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT i.id, %(workflow)s, %(version)s, 'pending', %(by)s,
       %(payload)s::jsonb || jsonb_build_object('id', i.id, 'created_at', at, 'updated_at', at), at, at, %(workspace)s
  FROM unnest(%(ids)s::text[]) WITH ORDINALITY AS i(id, n),
       LATERAL (SELECT now() - make_interval(secs => 10 + cardinality(%(ids)s::text[]) - i.n)) AS t(at)
"""


def settings_for(database: Database, redis_url: str = "redis://127.0.0.1:1/0", **overrides: Any) -> Settings:
    """Return settings on these servers, whatever the environment says."""
    return Settings.load(
        postgres_dsn=database.dsn, redis_url=redis_url, slots_redis_url=overrides.pop("slots", redis_url), **overrides
    )


def installation_of(database: Database, **overrides: Any) -> Installation:
    """Return the installation of this database."""
    return find_installation(settings_for(database, **overrides))


@contextmanager
def store_of(database: Database, connections: int = 4) -> Iterator[tuple[Store, Engine]]:
    """Yield a store on the database, and its engine."""
    with open_engine(settings_for(database), role="test", connections=connections) as engine:
        yield Store(engine), engine


def insert_workflow(
    connection: psycopg.Connection[Any],
    workflow_id: str = WORKFLOW_ID,
    *,
    owner: str | None = WORKSPACE_ID,
    archived: bool = False,
) -> None:
    """Insert a workflow of this workspace, or of none, unless it is there already."""
    connection.execute(_INSERT_WORKFLOW, {"id": workflow_id, "owner": owner, "archived": archived})


def insert_runs(
    database: Database,
    count: int = 1,
    *,
    triggered_by: str = "webhook",
    workspace_id: str | None = WORKSPACE_ID,
    inputs: dict[str, Any] | None = None,
    workflow_id: str = WORKFLOW_ID,
    version_id: str = VERSION_ID,
) -> list[str]:
    """Insert pending runs as Orcheo's model writes them, and their workflow; return their ids, oldest first."""
    run = WorkflowRun(
        workflow_id=UUID(workflow_id),
        workflow_version_id=UUID(version_id),
        triggered_by=triggered_by,
        input_payload=inputs or {"body": {"name": "Ada"}},
        workspace_id=workspace_id,
    )
    run.record_event(actor=triggered_by, action="run_created")
    ids = [str(uuid4()) for _ in range(count)]
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        insert_workflow(connection)
        connection.execute(
            _INSERT,
            {
                "workflow": workflow_id,
                "version": version_id,
                "by": triggered_by,
                "payload": json.dumps(run.model_dump(mode="json")),
                "ids": ids,
                "workspace": workspace_id,
            },
        )
    return ids


def read_run(database: Database, run_id: str) -> dict[str, Any]:
    """Return a run's row, after making sure that Orcheo's model can read it and that column and payload agree."""
    row = one(database, "SELECT * FROM workflow_runs WHERE id = %s", run_id)
    run = WorkflowRun.model_validate(row["payload"])
    assert run.status.value == row["status"]
    assert run.updated_at == row["updated_at"]
    return row


def ledger(database: Database, run_id: str) -> dict[str, Any]:
    """Return a run's row in the ledger."""
    return one(database, "SELECT * FROM orcheo_dispatch.dispatch WHERE run_id = %s", run_id)


def nth_claim(fence: int) -> int:
    """Return which claim of its run this fence is of."""
    return fence & 1023


def times_claimed(database: Database) -> set[int]:
    """Return how often runs were claimed."""
    return {nth_claim(row["fence"]) for row in everything(database, "SELECT fence FROM orcheo_dispatch.dispatch")}


def statuses(database: Database) -> set[str]:
    """Return the statuses that runs have."""
    return {row["status"] for row in everything(database, "SELECT DISTINCT status FROM workflow_runs")}


def all_are(database: Database, status: str) -> bool:
    """Return whether every run has this status."""
    return statuses(database) == {status}


def all_ended(database: Database) -> bool:
    """Return whether no run is pending or running."""
    return not statuses(database) & {"pending", "running"}


def one(database: Database, query: str, *parameters: Any) -> dict[str, Any]:
    """Return the one row of a query."""
    rows = everything(database, query, *parameters)
    assert len(rows) == 1, f"{len(rows)} rows"
    return rows[0]


def everything(database: Database, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Return all rows of a query."""
    with psycopg.connect(database.dsn, row_factory=dict_row, autocommit=True) as connection:
        return connection.execute(query, parameters).fetchall()


def execute(database: Database, query: str, *parameters: Any) -> None:
    """Run one statement as somebody else would: the API, or an operator."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(query, parameters)


def audit(row: dict[str, Any]) -> list[str]:
    """Return the actions in a run's audit log."""
    return [record["action"] for record in row["payload"]["audit_log"]]


def claim_all(store: Store, room: int = 100, **overrides: Any) -> list[Claim]:
    """Claim with the defaults of the settings."""
    arguments = {
        "triggers": ("webhook",),
        "every_trigger": False,
        "lease": 60.0,
        "dispatcher_id": uuid4(),
        "consumed": store.consumed_queues(),
        **overrides,
    }
    return store.claim(room, **arguments)
