"""Runs are executed by workers that consume the queue of their policy, and by no others."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import redis

from orcheo_dispatch.shared.broker.held import held_claims
from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from tests.support.database.databases import Database
from tests.support.database.runs import (
    all_are,
    everything,
    execute,
    insert_runs,
    installation_of,
    ledger,
    one,
    settings_for,
)
from tests.support.processes.processes import Stack, until

ME = Author("ada", Interface.COMMAND)


@pytest.fixture
def policies(database: Database) -> Iterator[Policies]:
    """Policies of the test's own database."""
    with open_engine(settings_for(database), role="test") as engine:
        yield Policies(engine)


def test_each_worker_executes_the_runs_of_its_queues(database: Database, stack: Stack, policies: Policies) -> None:
    plain = insert_runs(database, 10)
    workflow = one(database, "SELECT DISTINCT workflow_id FROM workflow_runs")["workflow_id"]
    with (
        stack.running("dispatcher"),
        stack.running("worker") as default,
        stack.running("worker", ORCHEO_WORKER_QUEUES="gpu") as gpu,
    ):
        until(lambda: all_are(database, "succeeded"), what="runs of the default queue")
        policies.set(Scope(workflow_id=workflow), {"queue": "gpu"}, ME)
        special = insert_runs(database, 10)
        until(lambda: all_are(database, "succeeded"), what="runs of the queue gpu")
    assert {run for run in plain if run in default.log} == set(plain)
    assert {run for run in special if run in gpu.log} == set(special)
    assert not any(run in gpu.log for run in plain)
    assert not any(run in default.log for run in special)


def test_runs_wait_in_the_table_until_a_worker_of_their_queue_is_alive(
    database: Database, stack: Stack, policies: Policies
) -> None:
    policies.set(ALL, {"queue": "gpu"}, ME)
    insert_runs(database, 3)
    with stack.running("dispatcher"), stack.running("worker"):
        since = datetime.now(UTC)
        until(
            lambda: one(
                database, "SELECT max(seen_at) > %s AS polled FROM orcheo_dispatch.process WHERE kind = 'worker'", since
            )["polled"],
            what="a heartbeat",
        )
        assert everything(database, "SELECT * FROM orcheo_dispatch.dispatch") == []
        with stack.running("worker", ORCHEO_WORKER_QUEUES="gpu, default"):
            until(lambda: all_are(database, "succeeded"), what="all runs")


def test_a_message_in_the_queue_of_dead_workers_is_given_up(
    database: Database, stack: Stack, redis_url: str, policies: Policies
) -> None:
    """Its run can then be routed elsewhere, under a higher fence."""
    policies.set(ALL, {"queue": "gpu"}, ME)
    (run_id,) = insert_runs(database)
    client = redis.Redis.from_url(redis_url)
    with stack.running("dispatcher", ORCHEO_DISPATCH_LEASE="1"):
        execute(
            database,
            "INSERT INTO orcheo_dispatch.process (id, kind, host, pid, version, concurrency, queues)"
            " VALUES (gen_random_uuid(), 'worker', 'h', 1, 'v', 1, '{gpu}')",
        )
        until(
            lambda: client.llen(installation_of(database).queue("gpu")) == 1,
            what="its message",
        )
        first = ledger(database, run_id)["fence"]
        policies.set(ALL, {"queue": None}, ME)
        execute(database, "DELETE FROM orcheo_dispatch.process WHERE kind = 'worker'")
        with stack.running("worker"):
            until(lambda: all_are(database, "succeeded"), what="the run")
    assert ledger(database, run_id)["fence"] > first
    assert held_claims(client, installation_of(database), []).waiting == frozenset()
