"""Which workflow floods, what holds late runs back, and why a run waits: who decided it, and what ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.pending import LateRuns, read_late, read_pending_workflows
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from orcheo_dispatch.shared.ledger.operators.repairs import repair
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.operators.waits import read_waits
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.databases import Database
from tests.support.database.runs import execute, store_of

ADA = Author("ada", Interface.COMMAND, "supplier is down")
_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT %(workflow)s || '/' || n, %(workflow)s, 'v', 'pending', 'webhook', '{}', now() - %(age)s::interval, now(), 'acme'
  FROM generate_series(1, %(runs)s) AS n
"""
_SPENT = """
INSERT INTO orcheo_dispatch.rate_use (workspace_id, workflow_id, until, runs) VALUES (%s, %s, '2100-01-02 03:04:05Z', 1)
"""


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """An engine on the test's own database, in which a dispatcher and a worker are alive."""
    with store_of(database) as (_, engine):
        Process(ProcessKind.DISPATCHER, triggers=("webhook",)).seen(engine)
        Process(ProcessKind.WORKER).seen(engine)
        yield engine


def _pending(database: Database, workflow: str, runs: int, age: str = "1 second") -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_INSERT, {"workflow": workflow, "runs": runs, "age": age})


def _sentence(engine: Engine, run_id: str) -> str:
    with transaction(engine) as connection:
        (wait,) = read_waits(connection, [run_id])
    return wait.sentence


def test_the_workflows_with_the_most_pending_runs_are_told_with_why_they_wait(
    database: Database, engine: Engine
) -> None:
    for number in range(6):
        _pending(database, f"w{number}", number + 1, age=f"{number} minutes")
    Policies(engine).set(Scope(workflow_id="w5"), {"paused": True}, ADA)
    with transaction(engine) as connection:
        found = read_pending_workflows(connection)
    assert [(row.workflow_id, row.pending, row.reason, row.by) for row in found] == [
        ("w5", 6, "paused", "ada"),
        *((f"w{number}", number + 1, "in_turn", None) for number in (4, 3, 2, 1)),
    ]
    assert (found[0].workspace_id, found[0].why, round(found[0].oldest_age / 60)) == ("acme", "supplier is down", 5)


def test_late_runs_are_counted_by_what_holds_them_back(database: Database, engine: Engine) -> None:
    for workflow, runs in (("paused", 3), ("spent", 2), ("failed", 4), ("slow", 1)):
        _pending(database, workflow, runs, age="10 minutes")
    _pending(database, "paused young", 5)
    for workflow in ("paused", "paused young"):
        Policies(engine).set(Scope(workflow_id=workflow), {"paused": True}, ADA)
    Policies(engine).set(Scope(workflow_id="spent"), {"rate_runs": 1, "rate_seconds": 60}, ADA)
    execute(database, _SPENT, "", "spent")
    execute(database, "UPDATE workflow_runs SET status = 'failed' WHERE workflow_id = 'failed'")
    repair(engine, [f"failed/{number}" for number in range(1, 5)], Action.REQUEUE, ADA)
    with transaction(engine) as connection:
        assert read_late(connection) == LateRuns(paused=3, limited=2, requeued=4)


@pytest.mark.parametrize(
    ("scope", "fields", "expected"),
    [
        (
            Scope(workflow_id="w 1"),
            {"paused": True},
            "its workflow is paused, by ada (supplier is down): 'orcheo-dispatch unpause --workflow 'w 1'' ends it",
        ),
        (
            Scope(workspace_id="acme"),
            {"paused": True},
            "its workspace is paused, by ada (supplier is down): 'orcheo-dispatch unpause --workspace acme' ends it",
        ),
        (
            ALL,
            {"paused": True},
            "all runs are paused, by ada (supplier is down): 'orcheo-dispatch unpause --all' ends it",
        ),
        (
            ALL,
            {"maintenance": True},
            (
                "maintenance is on, by ada (supplier is down), so no run is claimed: "
                "'orcheo-dispatch maintenance off' ends it"
            ),
        ),
        (
            ALL,
            {"queue": "gpu"},
            (
                "no live worker consumes queue gpu, which a policy names, by ada (supplier is down): "
                "start one with gpu in ORCHEO_WORKER_QUEUES; see 'orcheo-dispatch policy explain 'w 1''"
            ),
        ),
    ],
    ids=["workflow", "workspace", "all", "maintenance", "queue"],
)
def test_the_sentence_has_the_command_and_who_decided(
    database: Database, engine: Engine, scope: Scope, fields: dict[str, Any], expected: str
) -> None:
    _pending(database, "w 1", 1)
    # A policy of another scope must not be taken for the one that decides.
    Policies(engine).set(Scope(workflow_id="other"), {"paused": True}, Author("eve", Interface.COMMAND, "other"))
    Policies(engine).set(scope, fields, ADA)
    assert _sentence(engine, "w 1/1") == expected


def test_a_pause_for_a_time_says_until_when(database: Database, engine: Engine) -> None:
    _pending(database, "w", 1)
    until = "2100-01-02T03:04:05+00:00"
    Policies(engine).set(Scope(workflow_id="w"), {"paused": True, "paused_until": until}, ADA)
    assert _sentence(engine, "w/1").startswith("its workflow is paused until 2100-01-02 03:04:05 UTC, by ada (")


def test_a_used_up_rate_says_who_set_it_and_when_the_next_claim_is_possible(database: Database, engine: Engine) -> None:
    _pending(database, "w", 1)
    Policies(engine).set(Scope(workspace_id="acme"), {"rate_runs": 1, "rate_seconds": 60}, ADA)
    execute(database, _SPENT, "acme", "")
    assert _sentence(engine, "w/1") == (
        "rate used up: 1 of at most 1 claims of its workspace, by ada (supplier is down); the next is possible at "
        "2100-01-02 03:04:05 UTC; see 'orcheo-dispatch policy explain w'"
    )
