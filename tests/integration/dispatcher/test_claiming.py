"""Claiming: each pending run once, oldest first, under a fence that rises."""

from __future__ import annotations

import re
import threading
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import TextClause, text

from orcheo_dispatch.shared.ledger.model import Claim, Outcome
from orcheo_dispatch.shared.ledger.runs import Ending, NotBegun, Run
from orcheo_dispatch.shared.ledger.statements.claim import CLAIM
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_OLDEST_FIRST
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, execute, insert_runs, ledger, nth_claim, store_of

_ENDED = """
INSERT INTO orcheo_dispatch.dispatch
       (run_id, workflow_id, triggered_by, state, outcome, fence, slot, claimed_at, settled_at, dispatcher_id)
SELECT n::text, 'w', 'webhook', 'settled', 'succeeded', 1, 'none', now(), now(), gen_random_uuid()
  FROM generate_series(1, 50000) AS n
"""
_ENTRIES_READ = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'dispatch_live'"


def test_claim_takes_oldest_runs_first(database: Database) -> None:
    ids = insert_runs(database, 5)
    with store_of(database) as (store, _):
        assert sorted(claim.run_id for claim in claim_all(store, 3)) == sorted(ids[:3])
        assert sorted(claim.run_id for claim in claim_all(store, 3)) == sorted(ids[3:])
        assert claim_all(store) == []


def test_claim_leaves_runs_of_other_triggers_alone(database: Database) -> None:
    insert_runs(database, triggered_by="chatkit")
    (webhook,) = insert_runs(database, triggered_by="webhook")
    with store_of(database) as (store, _):
        assert [claim.run_id for claim in claim_all(store)] == [webhook]
        assert len(claim_all(store, every_trigger=True)) == 1


def test_two_dispatchers_claim_each_of_5000_runs_once(database: Database) -> None:
    ids = insert_runs(database, 5000)
    claimed: list[list[Claim]] = [[], []]
    start = threading.Barrier(2)

    def dispatch(mine: list[Claim]) -> None:
        with store_of(database, connections=1) as (store, _):
            start.wait()
            # An empty batch may only mean that the other one was faster.
            while len(claimed[0]) + len(claimed[1]) < len(ids):
                mine.extend(claim_all(store, 37))

    threads = [threading.Thread(target=dispatch, args=(mine,)) for mine in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [claim.run_id for mine in claimed for claim in mine]
    assert len(together) == len(set(together)) == 5000
    assert set(together) == set(ids)
    assert all(claimed), "both took part"
    assert {nth_claim(claim.fence) for mine in claimed for claim in mine} == {1}


@pytest.mark.parametrize("statement", [CLAIM, CLAIM_OLDEST_FIRST], ids=["in turn", "oldest first"])
def test_claim_of_row_claimed_and_released_since_snapshot_is_decided_by_ledger(
    database: Database, statement: TextClause
) -> None:
    """SKIP LOCKED does not look again at a row that another one locked, entered and let go, unchanged.

    A trigger that waits for an advisory lock holds dispatcher B between its snapshot and its locking of the
    row: B is made to wait on the *first* run while A claims the *second* and commits.
    """
    first, second = insert_runs(database, 2)
    with psycopg.connect(database.dsn) as gate, store_of(database) as (a, engine):
        # B claims through a function that stops once, after the snapshot was taken, until the gate opens.
        execute(
            database,
            """CREATE FUNCTION stop_once(id text) RETURNS boolean LANGUAGE plpgsql VOLATILE COST 1 AS $$
               BEGIN
                   PERFORM pg_advisory_xact_lock_shared(42);
                   RETURN true;
               END $$""",
        )
        gate.execute("SELECT pg_advisory_xact_lock(42)")
        slowed, times = re.subn(r"NOT r\.id IN \(SELECT unnest", r"stop_once(r.id) AND \g<0>", statement.text)
        assert times == 1
        taken: list[Claim] = []
        failures: list[BaseException] = []

        def claim_slowly() -> None:
            try:
                with engine.begin() as connection:
                    rows = connection.execute(
                        text(slowed),
                        {
                            "room": 10,
                            "choose": False,
                            "workspaces": None,
                            "workflows": None,
                            "keys": 64,
                            "after_workspace": "",
                            "workspaces_begun": [],
                            "after_workflows": [],
                            "per_workflow": None,
                            "per_workspace": None,
                            "default_room": 10,
                            "max_queued": 200,
                            "consumed": [],
                            "triggers": ["webhook"],
                            "every_trigger": False,
                            "skipped": [],
                            "lease": 60,
                            "dispatcher_id": str(uuid4()),
                        },
                    )
                    taken.extend(Claim(run_id, 1) for row in rows for run_id in row.run_ids)
            except BaseException as error:
                failures.append(error)

        b = threading.Thread(target=claim_slowly)
        b.start()
        _wait_for_waiter(gate)
        assert sorted(claim.run_id for claim in claim_all(a)) == sorted([first, second])
        gate.commit()
        b.join()
    assert not failures
    assert taken == []
    assert [nth_claim(ledger(database, run)["fence"]) for run in (first, second)] == [1, 1]


def _wait_for_waiter(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for _ in range(10_000):
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
        if row and row[0]:
            return
    pytest.fail("nobody waits for the gate")


def test_claim_reads_what_was_queued_before_only_once(database: Database) -> None:
    """Of what was queued and has ended dead entries are left in the index: the first who meets them marks them."""
    execute(database, _ENDED)
    insert_runs(database, 3000)
    with store_of(database, connections=1) as (store, engine):
        queued = claim_all(store, 2000)
        # Statistics are of a moment when many were queued.
        execute(database, "ANALYZE orcheo_dispatch.dispatch")
        store.release(queued, reason="test")

        def entries_read() -> int:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_stat_force_next_flush()"))
            with engine.begin() as connection:
                return int(connection.scalar(text(_ENTRIES_READ)))

        claim_all(store, 10)
        before = entries_read()
        claim_all(store, 10)
        assert entries_read() - before < 100


def test_each_claim_of_a_run_raises_its_fence(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        last = Claim(run_id, 0)
        for nth in (1, 2, 3):
            (claim,) = claim_all(store)
            assert claim > last
            assert nth_claim(claim.fence) == nth
            last = claim
            assert store.release([claim], reason="test") == 1


def test_released_claim_costs_no_attempt(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        store.release(claim_all(store), reason="broker_away")
        assert ledger(database, run_id)["attempts"] == 0
        assert ledger(database, run_id)["outcome"] == "released"
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
        assert ledger(database, run_id)["attempts"] == 1


def test_release_of_an_old_claim_changes_nothing(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        old = claim_all(store)
        store.release(old, reason="test")
        (new,) = claim_all(store)
        assert store.release(old, reason="test") == 0
        assert ledger(database, run_id)["state"] == "claimed"
        assert isinstance(store.begin(new, worker_id=uuid4(), lease=30), Run)
        assert store.release([new], reason="test") == 0


def test_release_of_a_run_cancelled_meanwhile_owes_its_slot(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claims = claim_all(store)
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", run_id)
        store.release(claims, reason="test")
        row = ledger(database, run_id)
        assert (row["outcome"], row["slot"]) == ("cancelled", "due")


def test_settled_run_is_not_claimed_again(database: Database) -> None:
    insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        store.begin(claim, worker_id=uuid4(), lease=30)
        settled = store.settle(claim, Ending.succeeded("{}"))
        assert settled is not None
        assert settled.outcome is Outcome.SUCCEEDED
        assert claim_all(store) == []


def test_queued_counts_what_waits_to_begin(database: Database) -> None:
    insert_runs(database, 3)
    with store_of(database) as (store, _):
        assert store.queued() == 0
        claims = claim_all(store)
        store.mark_published(claims[:1])
        assert store.queued() == 3
        store.begin(claims[0], worker_id=uuid4(), lease=30)
        assert store.queued() == 2


def test_worker_that_begins_before_publish_is_noted_stays_running(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        store.begin(claim, worker_id=uuid4(), lease=30)
        row = ledger(database, run_id)
        store.mark_published([claim])
        assert ledger(database, run_id) == row
        assert row["state"] == "running"


def test_prune_keeps_the_fence_of_a_pending_run(database: Database) -> None:
    done, waiting = insert_runs(database, 2)
    with store_of(database) as (store, _):
        claims = claim_all(store)
        fences = {claim.run_id: claim.fence for claim in claims}
        for claim in claims:
            if claim.run_id == done:
                store.begin(claim, worker_id=uuid4(), lease=30)
                store.settle(claim, Ending.succeeded("{}"))
            else:
                store.release([claim], reason="test")
        store.slots_returned([done])
        execute(database, "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - interval '8 days'")
        assert store.prune(retention=7 * 86_400, batch=10) == 1
        assert ledger(database, waiting)["fence"] == fences[waiting]


def test_prune_keeps_a_retry_that_is_scheduled_for_later(database: Database) -> None:
    retried, dead = insert_runs(database, 2)
    with store_of(database) as (store, _):
        for claim in claim_all(store):
            store.begin(claim, worker_id=uuid4(), lease=30)
            store.settle(claim, Ending.failed("failed", reason="ConnectionError"))
        store.slots_returned([retried, dead])
        execute(database, "UPDATE orcheo_dispatch.dispatch SET settled_at = now() - interval '8 days'")
        execute(
            database,
            "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at) VALUES (%s, 1, now() + interval '1 day')",
            retried,
        )
        assert store.prune(retention=7 * 86_400, batch=10) == 1
        assert ledger(database, retried)["outcome"] == "failed"


def test_retry_of_a_run_that_the_api_has_deleted_is_given_up(database: Database) -> None:
    gone, kept = insert_runs(database, 2)
    with store_of(database) as (store, _):
        for claim in claim_all(store):
            store.begin(claim, worker_id=uuid4(), lease=30)
            store.settle(claim, Ending.failed("failed", reason="ConnectionError"))
        execute(
            database,
            "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at)"
            " SELECT run_id, 1, now() - interval '1 s' FROM orcheo_dispatch.dispatch",
        )
        execute(database, "DELETE FROM workflow_runs WHERE id = %s", gone)
        assert store.retry(from_start=False, batch=10) == {kept: 1}
        rows = everything(database, "SELECT run_id FROM orcheo_dispatch.retry WHERE next_at IS NOT NULL")
        assert rows == []


def test_begin_of_a_claim_of_a_missing_run_is_skipped(database: Database) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        execute(database, "DELETE FROM workflow_runs WHERE id = %s", run_id)
        answer = store.begin(claim, worker_id=uuid4(), lease=30)
        assert isinstance(answer, NotBegun)
        assert answer.reason == "run is gone"
