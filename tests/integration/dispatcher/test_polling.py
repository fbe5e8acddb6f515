"""One poll on a real Postgres and a real Redis: what it claims, what it publishes, and Redis away."""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import redis

from orcheo_dispatch.dispatcher.app import Dispatcher
from orcheo_dispatch.dispatcher.publishing.publish import claims_per_message
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from orcheo_dispatch.shared.broker.held import held_claims
from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.ledger.model import Claim, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process, Workers
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.runs import (
    WORKSPACE_ID,
    everything,
    execute,
    insert_runs,
    installation_of,
    ledger,
    one,
    settings_for,
    times_claimed,
)
from tests.support.processes.dispatchers import dispatcher_of
from tests.support.processes.processes import Stack, until


def test_poll_publishes_only_run_and_fence(database: Database, redis_url: str) -> None:
    (run_id,) = insert_runs(database, inputs={"body": {"secret": "hunter2"}})
    with dispatcher_of(database, redis_url) as dispatcher, redis.Redis.from_url(redis_url) as client:
        report = dispatcher.poller.poll()
        assert (report.claimed, report.published) == (1, 1)
        (raw,) = client.lrange(installation_of(database).runs, 0, -1)
        assert b"hunter2" not in raw
        message = json.loads(raw)
        assert message["content-type"] == "application/json"
        assert message["headers"]["task"] == "orcheo_dispatch.execute_run"
        claim = Claim(run_id, ledger(database, run_id)["fence"])
        assert held_claims(client, installation_of(database), [claim]).waiting == {claim}
    assert ledger(database, run_id)["state"] == "claimed"


def test_poll_keeps_the_queue_short_and_the_backlog_in_the_database(database: Database, redis_url: str) -> None:
    insert_runs(database, 30)
    with (
        dispatcher_of(database, redis_url, max_queued=16, batch_size=8) as dispatcher,
        redis.Redis.from_url(redis_url) as client,
    ):
        reports = [dispatcher.poller.poll() for _ in range(3)]
        assert [report.claimed for report in reports] == [8, 8, 0]
        assert [report.next_delay == 0 for report in reports] == [True, True, False]
        claims = [
            Claim(row["run_id"], row["fence"])
            for row in everything(database, "SELECT run_id, fence FROM orcheo_dispatch.dispatch")
        ]
        assert len(held_claims(client, installation_of(database), claims).waiting) == 16


def test_deep_backlog_is_claimed_in_batches_and_a_shallow_one_at_once(database: Database, redis_url: str) -> None:
    insert_runs(database, 25)
    with dispatcher_of(database, redis_url, max_queued=16, batch_size=8) as dispatcher:
        store, poll = Store(dispatcher.engine), dispatcher.poller.poll
        assert [poll().claimed for _ in range(2)] == [8, 8]
        queued = everything(database, "SELECT run_id, fence FROM orcheo_dispatch.dispatch WHERE state <> 'settled'")
        begun = [Claim(row["run_id"], row["fence"]) for row in queued]
        store.begin_all(begun[:7], worker_id=uuid4(), lease=30)
        assert poll().claimed == 0, "for seven runs no batch is begun while others wait"
        store.begin_all(begun[7:8], worker_id=uuid4(), lease=30)
        assert poll().claimed == 8
        store.begin_all(begun[8:], worker_id=uuid4(), lease=30)
        assert [poll().claimed, poll().claimed] == [1, 0], "the last one waits for nobody"


def test_messages_of_a_deep_backlog_carry_several_claims_each(database: Database, redis_url: str) -> None:
    ids = insert_runs(database, 64)
    with (
        dispatcher_of(database, redis_url, batch_size=64) as dispatcher,
        redis.Redis.from_url(redis_url) as client,
    ):
        for worker in [Process(ProcessKind.WORKER, concurrency=100) for _ in range(2)]:
            client.set(installation_of(database).reader(str(worker.id)), 1)
            worker.seen(dispatcher.engine)
        assert dispatcher.poller.poll().published == 64
        assert client.llen(installation_of(database).runs) == 8, "four messages a worker"
        claims = {Claim(run_id, ledger(database, run_id)["fence"]) for run_id in ids}
        assert held_claims(client, installation_of(database), claims).waiting == claims


@pytest.mark.parametrize(
    ("claims", "alive", "smallest", "carried"),
    [(1, 1, 500, 1), (7, 1, 500, 1), (100, 1, 32, 8), (500, 2, 500, 62), (500, 1, 1, 1), (500, 0, 0, 1), (9, 8, 9, 1)],
)
def test_claims_of_a_message(claims: int, alive: int, smallest: int, carried: int) -> None:
    assert claims_per_message(claims, Workers(alive, smallest)) == carried


def test_redis_away_releases_claims_at_once_and_backs_off(database: Database, redis_server: EmbeddedRedis) -> None:
    ids = insert_runs(database, 3)
    with dispatcher_of(database, redis_server.url) as dispatcher:
        redis_server.kill()
        report = dispatcher.poller.poll()
        assert (report.claimed, report.published, report.released) == (3, 0, 3)
        assert report.broker_error
        again = dispatcher.poller.poll()
        assert (again.claimed, again.broker_error) == (0, dispatcher.poller.broker_problem)
        assert again.broker_error is not None
        redis_server.start()
        for _ in range(200):
            report = dispatcher.poller.poll()
            if report.published:
                break
        assert report.published == 3 or _published_within(dispatcher, 3)
        dispatcher.poller.finish()
    for run_id in ids:
        row = ledger(database, run_id)
        assert (row["state"], row["attempts"]) == ("published", 0)


def _published_within(dispatcher: Dispatcher, count: int) -> bool:
    import threading

    for _ in range(100):
        report = dispatcher.poller.poll()
        if report.published == count:
            return True
        threading.Event().wait(report.next_delay or 0.05)
    return False


@pytest.mark.parametrize(("release", "extended"), [("this", 0), ("last", 1)])
def test_message_in_hand_of_a_worker_is_published_again(
    database: Database, redis_url: str, release: str, extended: int
) -> None:
    """Delivered, and its run has not begun within a lease. Consumers of the last release get one more lease."""
    from celery import Celery

    from orcheo_dispatch.shared.broker.app import make_app

    insert_runs(database, 1)
    with (
        dispatcher_of(database, redis_url, lease=60) as dispatcher,
        redis.Redis.from_url(redis_url) as client,
    ):
        dispatcher.poller.poll()
        installation = installation_of(database)
        consumer: Celery = make_app("test", settings_for(database, redis_url), installation)
        if release == "last":
            consumer.conf.broker_transport_options |= {"ack_emulation": True, "unacked_key": installation.unacked}
        with consumer.connection_for_read() as connection:
            queue = connection.SimpleQueue(installation.runs)
            message = queue.get(timeout=10)
            assert client.llen(installation.runs) == 0
            for _ in range(extended):
                execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
                report = dispatcher.poller.poll()
                assert (report.extended, report.released) == (1, 0)
            execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
            report = dispatcher.poller.poll()
            assert (report.extended, report.released, report.published) == (0, 1, 1)
            message.ack()
            queue.close()
        consumer.close()
    assert times_claimed(database) == {2}


def test_only_a_claim_that_still_waits_is_marked_as_published(database: Database, redis_url: str) -> None:
    insert_runs(database, 2)
    with dispatcher_of(database, redis_url) as dispatcher:
        dispatcher.poller.poll()
        rows = everything(database, "SELECT run_id, fence FROM orcheo_dispatch.dispatch WHERE state = 'claimed'")
        begun, waiting = (Claim(row["run_id"], row["fence"]) for row in rows)
        Store(dispatcher.engine).begin_all([begun], worker_id=uuid4(), lease=60)
        as_begun = _version(database, begun)
        lease = ledger(database, waiting.run_id)["lease_expires_at"]

        def marked() -> bool:
            dispatcher.poller.poll()
            return bool(ledger(database, waiting.run_id)["state"] == "published")

        until(marked, what="the waiting claim is marked")
        assert _version(database, begun) == as_begun, "its row is not written"
        as_marked = _version(database, waiting)
        dispatcher.poller.poll()
        assert _version(database, waiting) == as_marked, "it is marked once"
        row = ledger(database, waiting.run_id)
        assert (row["published_at"], row["lease_expires_at"]) == (row["claimed_at"], lease)


def test_the_last_poll_marks_what_it_has_published(database: Database, redis_url: str) -> None:
    (run_id,) = insert_runs(database)
    with dispatcher_of(database, redis_url) as dispatcher:
        dispatcher.poller.poll()
        dispatcher.poller.finish()
        assert ledger(database, run_id)["state"] == "published"


def _version(database: Database, claim: Claim) -> Any:
    """Return what changes whenever the row is written."""
    return one(database, "SELECT ctid FROM orcheo_dispatch.dispatch WHERE run_id = %s", claim.run_id)


def test_slots_a_dead_worker_owed_are_given_back_once(database: Database, redis_url: str) -> None:
    (run_id,) = insert_runs(database)
    key = f"orcheo:workspace:runs:{WORKSPACE_ID}"
    # A short lease: nobody is called lost for a lease after a start of Postgres.
    with (
        dispatcher_of(database, redis_url, heartbeat=0.1, worker_lease=0.5, lost_runs="fail") as dispatcher,
        redis.Redis.from_url(redis_url) as client,
    ):
        client.set(key, 5)
        dispatcher.poller.poll()
        execute(
            database,
            "UPDATE orcheo_dispatch.dispatch SET state = 'running', begun_at = now(), worker_id = gen_random_uuid(),"
            " lease_expires_at = now() - interval '1 s', heartbeat_at = now()",
        )
        execute(database, "UPDATE workflow_runs SET status = 'running'")
        assert dispatcher.poller.poll().lost == 1
        dispatcher.upkeep.once()
        assert client.get(key) == b"4"
        assert ledger(database, run_id)["slot"] == "returned"
        assert not RunSlots(client).give_back(run_id, WORKSPACE_ID)
        assert client.get(key) == b"4"


@pytest.mark.parametrize(("before", "after"), [(None, None), ("1", None), ("0", None), ("2", "1")])
def test_counter_of_slots_never_falls_below_zero(redis_url: str, before: str | None, after: str | None) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        key = "orcheo:workspace:runs:w"
        if before is not None:
            client.set(key, before)
        assert RunSlots(client).give_back("r1", "w")
        assert client.get(key) == after


def test_polls_prune_until_nothing_old_is_left(database: Database, redis_url: str) -> None:
    """A batch at each maintenance alone would let the ledger grow for ever at some thousand runs a minute."""
    execute(
        database,
        "INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, triggered_by, state, outcome, slot, fence,"
        " attempts, claimed_at, begun_at, settled_at, dispatcher_id, worker_id)"
        " SELECT 'old-' || n, 'w', 'webhook', 'settled', 'succeeded', 'none', 1, 1, now(), now(),"
        " now() - interval '9 days', gen_random_uuid(), gen_random_uuid() FROM generate_series(1, 2500) AS n",
    )
    with dispatcher_of(database, redis_url) as dispatcher:
        left = []
        for _ in range(4):
            dispatcher.upkeep.once()
            left.append(everything(database, "SELECT count(*) AS rows FROM orcheo_dispatch.dispatch")[0]["rows"])
    assert left == [1500, 500, 0, 0]


_ENDED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = %s"
_CONNECTED = "SELECT FROM pg_stat_activity WHERE datname = %s AND application_name = %s"
_PUBLISHED = "SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s AND state = 'published'"


@pytest.mark.usefixtures("roles")
def test_upkeep_that_cannot_reach_postgres_is_logged_while_polls_go_on(database: Database, stack: Stack) -> None:
    """Its connection is its own: here it breaks, and the database takes no other of this role."""
    with stack.running("dispatcher") as dispatcher:
        connection = (database.name, "orcheo-dispatch dispatcher upkeep")
        until(partial(everything, database, _CONNECTED, *connection), what="the upkeep has a connection")
        execute(database, f"ALTER DATABASE {database.name} CONNECTION LIMIT 0")
        until(partial(everything, database, _ENDED, *connection), what="the connection of the upkeep ends")
        dispatcher.saw("upkeep_postponed", seconds=30)
        for _ in range(3):
            (run_id,) = insert_runs(database)
            until(partial(everything, database, _PUBLISHED, run_id), what="the run is published")
        execute(database, f"ALTER DATABASE {database.name} CONNECTION LIMIT -1")
        dispatcher.saw("upkeep_resumed", seconds=30)
        assert dispatcher.log.count("upkeep_postponed") == 1
        assert "database_unavailable" not in dispatcher.log
