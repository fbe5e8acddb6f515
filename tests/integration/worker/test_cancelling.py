"""A cancel, by the API or by an operator, stands: the run stops, cleans up, and its slot comes back."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.ledger.runs import Ending
from tests.support.database.databases import Database
from tests.support.database.runs import (
    WORKSPACE_ID,
    audit,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    store_of,
)
from tests.support.processes.processes import Stack, until

_SLOTS = f"orcheo:workspace:runs:{WORKSPACE_ID}"
_PUBLISHED = "SELECT FROM orcheo_dispatch.dispatch WHERE state = 'published'"
# As the API does it.
_CANCEL = """
UPDATE workflow_runs
   SET status = 'cancelled', updated_at = now(),
       payload = orcheo_dispatch.moved(payload, 'cancelled', 'run_cancelled', 'api', '{"reason": "not wanted"}',
           jsonb_build_object('error', 'not wanted', 'completed_at', orcheo_dispatch.iso(now())))
 WHERE id = %s AND status IN ('pending', 'running')
"""


@pytest.fixture
def slots(redis_url: str) -> Iterator[redis.Redis]:
    """Redis with five slots taken."""
    with redis.Redis.from_url(redis_url) as client:
        client.set(_SLOTS, 5)
        yield client


def test_run_cancelled_through_the_api_is_stopped_and_cleans_up(
    database: Database, stack: Stack, redis_url: str
) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "clean_up"})
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 5)
    with stack.running("worker"), stack.running("dispatcher"):
        until(lambda: stack.noted("begun"), what="the run begins")
        execute(database, "UPDATE workflow_runs SET status = 'cancelled' WHERE id = %s", run_id)
        until(lambda: ledger(database, run_id)["slot"] == "returned", what="the slot comes back")
    assert stack.noted("cleaned") == [run_id]
    assert ledger(database, run_id)["outcome"] == "cancelled"
    slots = RunSlots.at(redis_url)
    assert slots.in_use(WORKSPACE_ID) == 4
    slots.close()


def test_run_cancelled_before_any_claim_gives_its_slot_back(database: Database, stack: Stack, redis_url: str) -> None:
    (run_id,) = insert_runs(database)
    execute(database, "UPDATE workflow_runs SET status = 'cancelled', updated_at = now() WHERE id = %s", run_id)
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"orcheo:workspace:runs:{WORKSPACE_ID}", 3)
        with stack.running("dispatcher"):
            until(lambda: client.get(f"orcheo:workspace:runs:{WORKSPACE_ID}") == b"2", what="the slot is back")
            until(lambda: ledger(database, run_id)["slot"] == "returned", what="the ledger says so")
    assert ledger(database, run_id)["outcome"] == "cancelled"


@pytest.mark.parametrize("by", ["api", "operator"])
@pytest.mark.parametrize("when", ["pending", "published", "running"])
def test_cancel_stands_and_gives_the_slot_back(
    database: Database, stack: Stack, slots: redis.Redis, when: str, by: str
) -> None:
    def cancel() -> None:
        if by == "api":
            execute(database, _CANCEL, run_id)
            return
        with stack.command("cancel", run_id, "--reason", "not wanted") as command:
            assert command.exit_code() == 0

    (run_id,) = insert_runs(database, inputs={"do": "clean_up"})
    if when == "pending":
        cancel()
    with stack.running("dispatcher") as dispatcher:
        if when == "published":
            until(lambda: everything(database, _PUBLISHED), what="the run is published")
            cancel()
        with stack.running("worker"):
            if when == "running":
                until(lambda: stack.noted("begun"), what="the run begins")
                cancel()
                # Two heartbeats of 0.2 s, and the clean-up of as long.
                until(lambda: stack.noted("cleaned"), what="the run cleans up", seconds=3)
            until(lambda: slots.get(_SLOTS) == b"4", what="the slot is back", seconds=40)
            until(lambda: ledger(database, run_id)["slot"] == "returned", what="the ledger says so")
        assert "Traceback" not in dispatcher.log
    run = read_run(database, run_id)
    assert (run["status"], run["payload"]["error"]) == ("cancelled", "not wanted")
    assert audit(run)[-1] == "run_cancelled"
    assert audit(run).count("run_cancelled") == 1
    assert ledger(database, run_id)["outcome"] == "cancelled"
    assert stack.noted("begun") == ([run_id] if when == "running" else [])


def test_run_that_swallows_its_cancel_is_settled_after_the_grace_time(database: Database, stack: Stack) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "swallow", "seconds": 8})
    with stack.running("dispatcher"), stack.running("worker") as worker:
        until(lambda: stack.noted("begun"), what="the run begins")
        execute(database, _CANCEL, run_id)
        until(lambda: ledger(database, run_id)["state"] == "settled", what="the run is settled", seconds=5)
        worker.saw("run_ignored_stop")
        worker.saw("Runner was ended because a run in it did not stop")
    assert stack.noted("ended") == []
    assert read_run(database, run_id)["status"] == "cancelled"
    assert read_run(database, run_id)["payload"]["output_payload"] is None
    assert len(everything(database, "SELECT FROM workflow_runs")) == 1


@pytest.mark.parametrize("given_back", ["released", "requeued"])
def test_run_cancelled_between_two_claims_gives_its_slot_back(database: Database, given_back: str) -> None:
    """Found by the fault suite: its row is there already, settled, and still holds the slot."""
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        (claim,) = claim_all(store)
        if given_back == "released":
            store.release([claim], reason="test")
        else:
            store.begin(claim, worker_id=uuid4(), lease=30)
            store.settle(claim, Ending.requeued("test"))
        assert ledger(database, run_id)["slot"] == "held"
        execute(database, _CANCEL, run_id)
        adopted = store.adopt_cancelled(
            triggers=["webhook"], every_trigger=False, younger_than=60, dispatcher_id=uuid4(), batch=10
        )
        assert adopted == 1
        assert store.slots_due(older_than=0, batch=10) == [(run_id, WORKSPACE_ID)]
        store.slots_returned([run_id])
        again = store.adopt_cancelled(
            triggers=["webhook"], every_trigger=False, younger_than=60, dispatcher_id=uuid4(), batch=10
        )
        assert again == 0
    assert ledger(database, run_id)["outcome"] == "cancelled"
