"""Claims whose messages are in Redis: marked as published, found when they lapse, extended, and released."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import NotBegun, Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, execute, insert_runs, ledger, one, store_of

_RAN_ELSEWHERE = """
UPDATE workflow_runs SET status = %s, payload = jsonb_set(payload, '{audit_log}', payload -> 'audit_log'
       || jsonb_build_object('action', CAST(%s AS text), 'actor', CAST(%s AS text)))
"""


def _seconds_left(database: Database, claim: Claim) -> float:
    query = "SELECT EXTRACT(epoch FROM lease_expires_at - now()) AS s FROM orcheo_dispatch.dispatch WHERE run_id = %s"
    return float(one(database, query, claim.run_id)["s"])


def _expire(database: Database, seconds: int, *claims: Claim) -> None:
    execute(
        database,
        "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - make_interval(secs => %s)"
        " WHERE run_id = ANY (%s)",
        seconds,
        [claim.run_id for claim in claims],
    )


def test_published_claim_says_so_and_keeps_its_lease(database: Database) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store, lease=60.0)
        assert ledger(database, claim.run_id)["published_at"] is None
        store.mark_published([claim])
        row = ledger(database, claim.run_id)
        assert (row["state"], row["published_at"]) == ("published", row["claimed_at"])
        assert 50 < _seconds_left(database, claim) < 61
        store.mark_published([claim])
        assert ledger(database, claim.run_id) == row, "it was published before"


def test_run_that_began_before_it_was_marked_keeps_its_state_and_its_lease(database: Database) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        store.mark_published([claim])
        row = ledger(database, claim.run_id)
        assert (row["state"], row["published_at"]) == ("running", None)
        assert _seconds_left(database, claim) < 31


@pytest.mark.parametrize(
    "change",
    [
        lambda store, claim: store.mark_published([claim]),
        lambda store, claim: store.extend([claim], lease=3600, reason="late"),
        lambda store, claim: store.release([claim], reason="late"),
    ],
    ids=["publish", "extend", "release"],
)
def test_released_claim_stays_as_it_is(database: Database, change: Callable[[Store, Claim], object]) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        store.release([claim], reason="test")
        before = ledger(database, claim.run_id)
        change(store, claim)
        assert ledger(database, claim.run_id) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda store, claim: store.extend([claim], lease=3600, reason="late"),
        lambda store, claim: store.release([claim], reason="late"),
    ],
    ids=["extend", "release"],
)
def test_run_that_has_begun_stays_as_it_is(database: Database, change: Callable[[Store, Claim], int]) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        before = ledger(database, claim.run_id)
        assert change(store, claim) == 0
        assert ledger(database, claim.run_id) == before


def test_claims_lapse_in_the_order_of_their_leases_and_runs_do_not(database: Database) -> None:
    insert_runs(database, 5)
    with store_of(database) as (store, _):
        claimed, published, begun, released, live = claim_all(store)
        store.mark_published([published, live])
        assert isinstance(store.begin(begun, worker_id=uuid4(), lease=30), Run)
        store.release([released], reason="test")
        _expire(database, 5, published)
        _expire(database, 3, claimed)
        _expire(database, 9, begun)
        assert [*store.lapsed(batch=10)] == [published, claimed]
        assert [*store.lapsed(batch=1)] == [published]


def test_extended_claim_counts_as_published_when_it_was_claimed(database: Database) -> None:
    insert_runs(database, 2)
    with store_of(database) as (store, _):
        claimed, published = claim_all(store)
        store.mark_published([published])
        at = ledger(database, published.run_id)["published_at"]
        assert store.extend([claimed, published], lease=3600, reason="in Redis") == 2
        row = ledger(database, claimed.run_id)
        assert (row["state"], row["reason"], row["published_at"]) == ("published", "in Redis", row["claimed_at"])
        assert ledger(database, published.run_id)["published_at"] == at
        assert min(_seconds_left(database, claim) for claim in (claimed, published)) > 3000


@pytest.mark.parametrize("table", ["orcheo_dispatch.dispatch", "workflow_runs"])
def test_locked_claim_is_left_and_the_others_are_released(database: Database, table: str) -> None:
    insert_runs(database, 2)
    column = "id" if table == "workflow_runs" else "run_id"
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as other:
        held, free = claim_all(store)
        other.execute(f"SELECT FROM {table} WHERE {column} = %s FOR UPDATE".encode(), (held.run_id,))
        assert store.release([held, free], reason="test") == 1
        other.rollback()
        assert ledger(database, held.run_id)["state"] == "claimed"
        assert ledger(database, free.run_id)["outcome"] == "released"


def _release(store: Store, claim: Claim) -> None:
    assert store.release([claim], reason="test") == 1


def _begin(store: Store, claim: Claim) -> None:
    assert isinstance(store.begin(claim, worker_id=uuid4(), lease=60), NotBegun)


@pytest.mark.parametrize("settle", [_release, _begin])
@pytest.mark.parametrize(
    ("status", "action", "actor", "attempts", "outcome", "slot"),
    [
        ("running", "run_started", "worker", 0, "skipped", "held"),
        ("cancelled", "x", "x", 0, "cancelled", "due"),
        ("cancelled", "run_started", "worker", 0, "cancelled", "due"),
        ("succeeded", "run_started", "worker", 0, "skipped", "returned"),
        ("failed", "run_started", "worker", 0, "skipped", "returned"),
        ("failed", "run_started", "worker", 1, "skipped", "due"),
        ("failed", "run_started", "api", 0, "skipped", "due"),
        ("succeeded", "x", "worker", 0, "skipped", "due"),
    ],
)
def test_slot_of_a_claim_that_does_not_begin_is_due_unless_another_worker_has_returned_it(
    database: Database,
    settle: Callable[[Store, Claim], None],
    status: str,
    action: str,
    actor: str,
    attempts: int,
    outcome: str,
    slot: str,
) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        execute(database, _RAN_ELSEWHERE, status, action, actor)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET attempts = %s", attempts)
        settle(store, claim)
        row = ledger(database, claim.run_id)
    assert (row["state"], row["outcome"], row["slot"]) == ("settled", outcome, slot)


@pytest.mark.parametrize(("action", "actor"), [("x", "x"), ("run_started", "worker")])
def test_pending_run_keeps_its_slot_when_its_claim_is_released(database: Database, action: str, actor: str) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        execute(database, _RAN_ELSEWHERE, "pending", action, actor)
        _release(store, claim)
        row = ledger(database, claim.run_id)
    assert (row["state"], row["outcome"], row["slot"], row["reason"]) == ("settled", "released", "held", "test")


def test_slot_of_a_run_without_a_workspace_is_never_due(database: Database) -> None:
    insert_runs(database, workspace_id=None)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled'")
        store.release([claim], reason="test")
    assert ledger(database, claim.run_id)["slot"] == "none"
