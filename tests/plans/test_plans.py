"""The planner's choice on 200,000 runs: polls must not read the runs that have ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import TextClause, create_mock_engine

from orcheo_dispatch.shared.ledger import overview, story
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX, TURNS_INDEX
from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.ledger.statements import waits
from orcheo_dispatch.shared.ledger.statements.claim import CLAIM
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_GIVEN, CLAIM_OLDEST_FIRST
from orcheo_dispatch.shared.ledger.statements.execute import BEGIN, HEARTBEAT, SETTLE
from orcheo_dispatch.shared.ledger.statements.look import LOOK, QUEUED
from orcheo_dispatch.shared.ledger.statements.policy import ENTRIES, HELD_BACK, LATE_REASONS, PENDING_WORKFLOWS
from orcheo_dispatch.shared.ledger.statements.publish import EXTEND, LAPSED, RELEASE
from orcheo_dispatch.shared.ledger.statements.recover import PRUNE, REAP, REAP_ORPHANS, RETRY, SLOTS_DUE
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, insert_workflow, store_of

_FILL = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT gen_random_uuid()::text, 'w' || n %% 50, 'v', CASE WHEN n %% 100 = 0 THEN 'pending' ELSE 'succeeded' END,
       'webhook', '{}', now() - make_interval(secs => n), now(), 'a' || n %% 50
  FROM generate_series(1, %s) AS n
"""
_SETTLED = """
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, fence, slot, claimed_at,
                                      settled_at, dispatcher_id)
SELECT id, workflow_id, triggered_by, 'settled', 'succeeded', 1, 'none', now(), now(), gen_random_uuid()
  FROM workflow_runs WHERE status = 'succeeded'
"""
_RETRIES = """
INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at)
SELECT run_id, 1, CASE WHEN row_number() OVER (ORDER BY run_id) % 100 = 0 THEN now() END
  FROM orcheo_dispatch.dispatch WHERE state = 'settled' ORDER BY run_id LIMIT 20000
"""
# Of the settled runs, one in a hundred has failed, and 300 wait for an answer.
_FAILED = """
WITH failed AS (
    UPDATE orcheo_dispatch.dispatch SET outcome = 'failed' WHERE state = 'settled' AND hashtext(run_id) % 100 = 0
    RETURNING run_id
)
UPDATE workflow_runs SET status = 'failed' FROM failed WHERE id = failed.run_id
"""
_QUESTIONS = """
WITH asked AS (
    INSERT INTO orcheo_dispatch.question (run_id, checkpoint_id, interrupts)
    SELECT run_id, 'c', 1 FROM orcheo_dispatch.dispatch WHERE state = 'settled' AND outcome = 'succeeded'
     ORDER BY run_id LIMIT 300
    RETURNING run_id
), waiting AS (
    UPDATE orcheo_dispatch.dispatch AS d SET outcome = 'requeued' FROM asked WHERE d.run_id = asked.run_id
)
UPDATE workflow_runs SET status = 'running' FROM asked WHERE id = asked.run_id
"""
_OPERATIONS = """
INSERT INTO orcheo_dispatch.operation (by, interface, action, run_ids, details, changed, refused)
SELECT 'ada', 'command', 'requeue', array_fill('r'::text, ARRAY[100]), '{}', 100, 0 FROM generate_series(1, 20000)
"""


@pytest.fixture
def busy(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """200,000 runs of which 2,000 are pending, their settled ledger rows, and 300 live ones."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for number in range(50):
            insert_workflow(connection, f"w{number}", owner=f"a{number}")
        connection.execute(_FILL, (200_000,))
        connection.execute(_SETTLED)
        connection.execute(_RETRIES)
        with store_of(database) as (store, _):
            for claim in claim_all(store, 300)[:150]:
                assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        connection.execute("ANALYZE")
        yield connection


_CLAIM: dict[str, Any] = {
    "room": 100,
    "triggers": ["webhook", "cron"],
    "every_trigger": False,
    "lease": 60.0,
    "dispatcher_id": str(uuid4()),
    "per_workflow": None,
    "per_workspace": None,
    "default_room": 100,
    "max_queued": 200,
    "consumed": [],
    "skipped": [],
    "choose": False,
}
_RUNS: dict[str, Any] = {"run_ids": ["x"] * 32, "fences": [1] * 32}
_WINDOW: dict[str, Any] = {
    **_CLAIM,
    "workspaces": None,
    "workflows": None,
    "keys": 64,
    "after_workspace": "",
    "workspaces_begun": [],
    "after_workflows": [],
}
_GIVEN = {**_WINDOW, "workspaces": ["", "a"], "workflows": ["w1", "w2"]}
_LIMITS = {"per_workflow": 10, "per_workspace": 20}
_ANY: dict[str, Any] = {"skipped": [], "chosen": None, "choose": False}
_CASES = {
    "claim": (CLAIM, _WINDOW, TURNS_INDEX),
    "claim more": (CLAIM, _GIVEN, TURNS_INDEX),
    "claim under limits": (CLAIM, {**_WINDOW, **_LIMITS}, TURNS_INDEX),
    "claim oldest first": (CLAIM_OLDEST_FIRST, _CLAIM, PENDING_INDEX),
    "look": (LOOK, {"triggers": ["webhook"], "every_trigger": False, "index": TURNS_INDEX}, "dispatch_live"),
    "queued": (QUEUED, {}, "dispatch_live"),
    "lapsed": (LAPSED, {"batch": 100, "skipped": []}, "dispatch_live"),
    "reap": (
        REAP,
        {"policy": "fail", "max_attempts": 3, "lease": 30.0, "batch": 100, "actor": "dispatcher", **_ANY},
        "dispatch_live",
    ),
    "slots": (SLOTS_DUE, {"older_than": 15.0, "batch": 100, "skipped": []}, "dispatch_slots_due"),
    "lost": (
        REAP,
        {"policy": "fail", "max_attempts": 3, "lease": 30.0, "batch": 100, "actor": "x", **_ANY, "choose": True},
        "dispatch_live",
    ),
    "retry": (RETRY, {"batch": 100, "from_start": False, "actor": "x", **_ANY}, "retry_due"),
    "orphans": (REAP_ORPHANS, {"batch": 100, **_ANY}, "dispatch_live"),
    "prune": (PRUNE, {"retention": 86_400.0, "batch": 100, **_ANY}, "dispatch_settled"),
    "claimable": (CLAIM, {**_WINDOW, "choose": True}, TURNS_INDEX),
    "claimable oldest first": (CLAIM_OLDEST_FIRST, {**_CLAIM, "choose": True}, PENDING_INDEX),
    "claim given": (CLAIM_GIVEN, {**_CLAIM, "run_ids": ["x"] * 32}, "workflow_runs_pkey"),
    "release": (RELEASE, {"reason": "x", **_RUNS}, "dispatch_pkey"),
    "extend": (EXTEND, {"reason": "x", "lease": 60.0, **_RUNS}, "dispatch_pkey"),
    "begin": (
        BEGIN,
        {**_RUNS, "actor": "worker", "lease": 30.0, "worker_id": str(uuid4())},
        "workflow_runs_pkey",
    ),
    "settle": (
        SETTLE,
        {
            **_RUNS,
            "actor": "worker",
            "outcomes": ["succeeded"] * 32,
            "statuses": ["succeeded"] * 32,
            "actions": ["run_succeeded"] * 32,
            "reasons": [None] * 32,
            "metadata": ["{}"] * 32,
            "changes": ["{}"] * 32,
            "refunds": [False] * 32,
            "suspects": [False] * 32,
            "retries": [True] * 32,
            "checkpoints": [None] * 32,
            "interrupts": [0] * 32,
            "keeps_slot": [False] * 32,
            "worker_id": str(uuid4()),
        },
        "workflow_runs_pkey",
    ),
    "heartbeat": (HEARTBEAT, {"lease": 30.0, "worker_id": str(uuid4()), **_RUNS}, "dispatch_pkey"),
}


_CHOSEN: dict[str, Any] = {
    "limit": 25,
    "newest": 20_000,
    "with_pending": True,
    "with_running": True,
    "outcomes": ["succeeded", "failed", "timed_out", "lost", "cancelled", "skipped"],
    "workflow": None,
}
_OF_THE_PAGE = {
    "hour": (overview.HOUR, {"hour_rows": 250_000, "sampled": 10_000}, {"dispatch_settled"}),
    "runs": (overview.RUNS, _CHOSEN, {"dispatch_settled", "dispatch_live", PENDING_INDEX}),
    "one workflow": (overview.RUNS, {**_CHOSEN, "workflow": "w7", "outcomes": ["lost"]}, {"dispatch_settled"}),
    "stuck": (overview.STUCK, {"limit": 10}, {"dispatch_live"}),
    "lost": (overview.LOST, {"limit": 10, "newest": 20_000}, {"dispatch_settled"}),
    "rows": (overview.ROWS, {"run_ids": ["x"] * 25, "limit": 25}, {"workflow_runs_pkey", "dispatch_pkey"}),
    "workflows": (overview.WORKFLOWS, {"limit": 50, "newest": 5_000}, {"dispatch_settled"}),
    "retrying": (waits.RETRYING, {"limit": 10}, {"retry_due", "dispatch_pkey"}),
    "waiting": (waits.WAITING, {"limit": 10}, {"workflow_runs_pkey", "dispatch_pkey"}),
    "dead": (waits.DEAD, {"limit": 10, "newest": 20_000}, {"dispatch_settled", "workflow_runs_pkey"}),
    "waits": (waits.WAITS, {"run_ids": ["x"] * 25}, {"workflow_runs_pkey", "retry_pkey"}),
    "backlog": (PENDING_WORKFLOWS, {"limit": 5}, {"dispatch_live"}),
    "late": (LATE_REASONS, {}, {"dispatch_pkey"}),
    "held back": (HELD_BACK, {"run_ids": ["x"] * 5, "limit": 1000}, {"workflow_runs_pkey"}),
    "entries": (ENTRIES, {"limit": 1000}, {"operation_pkey"}),
    "story": (story.RUN, {"run_id": "x"}, {"workflow_runs_pkey", "dispatch_pkey", "retry_pkey"}),
    "story's audit log": (story.PAYLOAD, {"run_id": "x", "with_error": False}, {"workflow_runs_pkey"}),
}
_WHOLE = {"workflow_runs", "dispatch", "retry", "operation"}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_page_reads_what_is_new_and_leaves_the_rest(busy: psycopg.Connection[Any], mode: str) -> None:
    busy.execute(f"SET plan_cache_mode = {mode}")
    busy.execute(
        "UPDATE orcheo_dispatch.dispatch SET settled_at = r.updated_at - (now() - r.created_at) "
        "FROM workflow_runs AS r WHERE id = run_id AND state = 'settled'"
    )
    busy.execute(_FAILED)
    busy.execute(_QUESTIONS)
    busy.execute(_OPERATIONS)
    busy.execute("ANALYZE")
    for name, (statement, parameters, indexes) in _OF_THE_PAGE.items():
        plan = _explain(busy, statement, parameters)
        assert indexes <= _indexes(plan), f"{name} under {mode}: {json.dumps(plan, indent=1)}"
        scanned = _scanned_whole(plan)
        assert not scanned & _WHOLE, f"{name} under {mode} reads all of {scanned}"


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_statements_use_their_indexes_with_bound_parameters(busy: psycopg.Connection[Any], mode: str) -> None:
    busy.execute(f"SET plan_cache_mode = {mode}")
    for name, (statement, parameters, index) in _CASES.items():
        plan = _explain(busy, statement, parameters)
        assert _indexes(plan) & _good(index), f"{name} under {mode}: {json.dumps(plan, indent=1)}"
        scanned = _scanned_whole(plan)
        assert not scanned & {"workflow_runs", "dispatch"}, f"{name} under {mode} reads all of {scanned}"


def test_claims_work_without_the_indexes(busy: psycopg.Connection[Any]) -> None:
    busy.execute(f"DROP INDEX {PENDING_INDEX}, {TURNS_INDEX}")
    for statement, parameters in ((CLAIM, _WINDOW), (CLAIM_OLDEST_FIRST, _CLAIM)):
        with busy.transaction(force_rollback=True):
            rows = busy.cursor(row_factory=dict_row).execute(_compiled(statement), parameters).fetchall()
            assert sum(len(row["run_ids"]) for row in rows) == 100


def _compiled(statement: TextClause) -> str:
    """Return the statement as psycopg gets it: with its parameters bound, not written into it."""
    return str(statement.compile(dialect=create_mock_engine("postgresql+psycopg://", executor=print).dialect))


def _explain(connection: psycopg.Connection[Any], statement: TextClause, parameters: dict[str, Any]) -> Any:
    # A prepared statement, since only those have generic plans.
    row = connection.execute(f"EXPLAIN (FORMAT JSON) {_compiled(statement)}", parameters, prepare=True).fetchone()
    assert row is not None
    return row[0][0]["Plan"]


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _indexes(plan: Any) -> set[str]:
    return {node["Index Name"] for node in _nodes(plan) if "Index Name" in node}


def _scanned_whole(plan: Any) -> set[str]:
    return {node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan"}


def _good(index: str) -> set[str]:
    # For a row of the ledger the indexes of live and of running rows are as good as the primary key: they are few.
    return {index, "dispatch_live"} if index == "dispatch_pkey" else {index}
