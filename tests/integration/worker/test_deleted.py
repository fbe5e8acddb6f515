"""Runs, with their workflows, that somebody deletes at any moment: nothing fails but they, and slots come back."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.shared.ledger.runs import Ending, NotBegun, Run
from tests.support.database.databases import Database
from tests.support.database.runs import (
    WORKSPACE_ID,
    claim_all,
    everything,
    execute,
    insert_runs,
    ledger,
    read_run,
    store_of,
)
from tests.support.processes.processes import Stack, until

_DELETE = "DELETE FROM workflow_runs WHERE id = %s"
_MOMENTS = ("before claim", "before begin", "while running", "before settle")


@pytest.mark.parametrize("moment", _MOMENTS)
def test_deleted_run_costs_no_other_and_owes_its_slot(database: Database, moment: str) -> None:
    deleted, other = insert_runs(database, 2)
    worker_id = uuid4()

    def delete_at(now: str) -> None:
        if now == moment:
            execute(database, _DELETE, deleted)

    with store_of(database) as (store, _):
        delete_at("before claim")
        claims = {claim.run_id: claim for claim in claim_all(store)}
        assert other in claims
        delete_at("before begin")
        begun = store.begin_all([*claims.values()], worker_id=worker_id, lease=30)
        assert {run.run_id for run in begun if isinstance(run, Run)} >= {other}
        assert [run.reason for run in begun if isinstance(run, NotBegun)] == ["run is gone"] * (
            moment == "before begin"
        )
        delete_at("while running")
        held = store.heartbeat(claims.values(), lease=30)
        assert held == {claim: True for run_id, claim in claims.items() if run_id == other or moment != "before begin"}
        ended = {claims[deleted]} if moment == "while running" else set()
        assert store.ended_by_api(claims.values()) == ended
        delete_at("before settle")
        settled = store.settle_all(dict.fromkeys(claims.values(), Ending.succeeded('{"final_state": {}}')))
        assert settled.settled[claims[other]].ended
        due = {run_id for run_id, _ in store.slots_due(older_than=0, batch=10)}
    assert read_run(database, other)["status"] == "succeeded"
    assert due == {other} | ({deleted} if deleted in claims else set())
    if deleted in claims:
        assert (ledger(database, deleted)["state"], ledger(database, deleted)["outcome"]) == ("settled", "skipped")


def test_runs_deleted_under_processes_leave_nothing_behind(database: Database, redis_url: str, tmp_path: Path) -> None:
    stack = Stack(database, redis_url, tmp_path / "effects")
    counter = f"orcheo:workspace:runs:{WORKSPACE_ID}"
    with redis.Redis.from_url(redis_url) as client, stack.running("dispatcher"), stack.running("worker") as worker:
        ids = insert_runs(database, 6, inputs={"do": "wait", "seconds": 3600})
        client.set(counter, 6)
        until(lambda: len(stack.noted("begun")) == 6, what="all runs begin")
        execute(database, "DELETE FROM workflow_runs WHERE id = ANY (%s)", ids[:5])
        until(lambda: len(stack.noted("cancelled")) == 5, what="they are stopped")
        until(lambda: client.get(counter) == b"1", what="their slots are given back")
        assert read_run(database, ids[5])["status"] == "running"
        assert [row["outcome"] for row in everything(database, _SETTLED)] == ["skipped"] * 5
        worker.saw("run_ended_by_api")


_SETTLED = "SELECT outcome FROM orcheo_dispatch.dispatch WHERE state = 'settled'"
