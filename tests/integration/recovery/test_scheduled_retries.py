"""Retries that a settle schedules: of which runs, when, and what is counted."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.runs import (
    WORKFLOW_ID,
    WORKSPACE_ID,
    claim_all,
    everything,
    execute,
    insert_runs,
    insert_workflow,
    one,
    read_run,
    store_of,
)

_OTHER_WORKFLOW = "6f1d3c62-5a53-4d4c-9a39-0d3f9e9a7c12"
_FAILED = Ending.failed("no", reason="ConnectionError", retry=True)
_POLICY = {"max_attempts": 5, "initial_delay_seconds": 100, "backoff_factor": 2, "jitter_factor": 0}


def _retried(database: Database, workflow_id: str = WORKFLOW_ID, **changes: Any) -> None:
    config = json.dumps(_POLICY | changes)
    execute(database, "INSERT INTO retry_policies (workflow_id, config) VALUES (%s, %s)", workflow_id, config)


def _begun(store: Store) -> dict[str, Claim]:
    claims = claim_all(store)
    assert all(isinstance(answer, Run) for answer in store.begin_all(claims, worker_id=uuid4(), lease=30))
    return {claim.run_id: claim for claim in claims}


def _scheduled(database: Database) -> dict[str, tuple[int, int]]:
    """Return the number of the next retry and the seconds until then, by run."""
    rows = everything(
        database, "SELECT run_id, retries, EXTRACT(epoch FROM next_at - now())::float8 AS s FROM orcheo_dispatch.retry"
    )
    return {row["run_id"]: (row["retries"], round(row["s"], -1)) for row in rows}


def test_each_failed_run_is_scheduled_by_the_policy_of_its_own_workflow(database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        insert_workflow(connection, _OTHER_WORKFLOW)
    one, two = insert_runs(database, 2)
    (other,) = insert_runs(database, workflow_id=_OTHER_WORKFLOW)
    _retried(database)
    _retried(database, _OTHER_WORKFLOW, initial_delay_seconds=500, max_delay_seconds=None)
    with store_of(database) as (store, _):
        claims = _begun(store)
        settled = store.settle_all(dict.fromkeys(claims.values(), _FAILED)).settled
    assert _scheduled(database) == {one: (1, 100), two: (1, 100), other: (1, 500)}
    assert all(each.retry_at for each in settled.values())
    for run_id in (one, two, other):
        assert read_run(database, run_id)["payload"]["audit_log"][-1]["metadata"]["retry"] == 1


def test_only_a_failure_that_the_api_has_not_overtaken_is_scheduled(database: Database) -> None:
    retried, no_retry, cancelled, good = insert_runs(database, 4)
    _retried(database)
    with store_of(database) as (store, _):
        claims = _begun(store)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", cancelled)
        settled = store.settle_all(
            {
                claims[retried]: _FAILED,
                claims[no_retry]: Ending.failed("no", reason="ValueError"),
                claims[cancelled]: _FAILED,
                claims[good]: Ending.succeeded("{}"),
            }
        ).settled
    assert _scheduled(database) == {retried: (1, 100)}
    assert {claim.run_id for claim, each in settled.items() if each.retry_at} == {retried}
    assert "retry" not in read_run(database, no_retry)["payload"]["audit_log"][-1]["metadata"]


def test_later_retry_waits_longer_and_a_stale_one_is_not_counted(database: Database) -> None:
    run_id, other = insert_runs(database, 2)
    _retried(database)
    with store_of(database) as (store, _):
        claims = _begun(store)
        stale = Claim(run_id, claims[run_id].fence - 1)
        assert {*store.settle_all({stale: _FAILED, claims[other]: _FAILED}).settled} == {claims[other]}
        assert _scheduled(database) == {other: (1, 100)}
        store.settle(claims[run_id], _FAILED)
        execute(
            database,
            "UPDATE orcheo_dispatch.retry SET next_at = now(), start_over_from = 'c' WHERE run_id = %s",
            run_id,
        )
        assert store.retry(from_start=False, batch=10) == {run_id: 1}
        (claim,) = _begun(store).values()
        store.settle(claim, _FAILED)
    assert _scheduled(database) == {run_id: (2, 200), other: (1, 100)}


def test_workflow_without_a_policy_is_not_retried(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        store.settle_all(dict.fromkeys(_begun(store).values(), _FAILED))
    assert _scheduled(database) == {}
    assert read_run(database, run_id)["workspace_id"] == WORKSPACE_ID


def test_retries_become_pending_when_they_are_due_and_only_those_of_failed_runs(database: Database) -> None:
    due, later, cancelled = insert_runs(database, 3)
    _retried(database)
    with store_of(database) as (store, _):
        store.settle_all(dict.fromkeys(_begun(store).values(), _FAILED))
        execute(database, "UPDATE orcheo_dispatch.retry SET next_at = now() WHERE run_id <> %s", later)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", cancelled)
        assert store.retry(from_start=False, batch=10) == {due: 1}
        assert store.retry(from_start=False, batch=10) == {}
    statuses = {row["id"]: row["status"] for row in everything(database, "SELECT id, status FROM workflow_runs")}
    assert statuses == {due: "pending", later: "failed", cancelled: "cancelled"}
    rows = everything(
        database, "SELECT run_id, outcome, reason, attempts - refunded AS counted FROM orcheo_dispatch.dispatch"
    )
    assert {row["run_id"]: (row["outcome"], row["reason"], row["counted"]) for row in rows} == {
        due: ("requeued", "retry", 0),
        later: ("failed", "ConnectionError", 1),
        cancelled: ("failed", "ConnectionError", 1),
    }
    waiting = everything(database, "SELECT run_id FROM orcheo_dispatch.retry WHERE next_at IS NOT NULL")
    assert [row["run_id"] for row in waiting] == [later]


_POLICIES = [
    ('{"max_attempts": 3, "initial_delay_seconds": 30, "backoff_factor": 2, "jitter_factor": 0}', 0, 30.0),
    ('{"max_attempts": 3, "initial_delay_seconds": 30, "backoff_factor": 2, "jitter_factor": 0}', 1, 60.0),
    ('{"max_attempts": 3, "initial_delay_seconds": 30, "backoff_factor": 2, "jitter_factor": 0}', 2, None),
    ('{"max_attempts": 99, "backoff_factor": 10, "max_delay_seconds": 45, "jitter_factor": 0}', 5, 45.0),
    ('{"max_attempts": 9, "max_delay_seconds": null, "backoff_factor": 10, "jitter_factor": 0}', 2, 3000.0),
    ('{"max_attempts": 9, "initial_delay_seconds": 0}', 3, 0.0),
    ('{"max_attempts": 1}', 0, None),
    ('{"max_attempts": "many"}', 0, None),
    (
        '{"max_attempts": 9, "initial_delay_seconds": 1e308, "backoff_factor": 1e308, "max_delay_seconds": null}',
        3,
        None,
    ),
    # Where it does not say how long a delay may be.
    ('{"max_attempts": 9, "initial_delay_seconds": 200, "backoff_factor": 2, "jitter_factor": 0}', 2, 300.0),
    ("[]", 0, 30.0),
]


@pytest.mark.parametrize(("policy", "retries", "expected"), _POLICIES)
def test_delay_is_that_of_the_policy(database: Database, policy: str, retries: int, expected: float | None) -> None:
    execute(database, "INSERT INTO retry_policies (workflow_id, config) VALUES ('w', %s)", policy)
    row = one(database, "SELECT orcheo_dispatch.retry_delay('w', %s) AS delay", retries)
    if expected is None or policy != "[]":
        assert row["delay"] == expected
    else:
        assert 27 <= row["delay"] <= 33
