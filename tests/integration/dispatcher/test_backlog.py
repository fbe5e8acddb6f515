"""The gauges of what waits: what a dispatcher says at a scrape, and what it does not where a server is unavailable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis

from orcheo_dispatch.dispatcher import backlog
from orcheo_dispatch.dispatcher.backlog import Backlog
from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, execute, insert_runs, installation_of, settings_for, store_of

type Samples = dict[str, float]


@contextmanager
def _backlog(database: Database, redis_url: str, **settings: Any) -> Iterator[Backlog]:
    loaded = settings_for(database, redis_url, health_port=1, **settings)
    with connect(redis_url) as client:
        made = Backlog(loaded, installation_of(database), client)
        try:
            yield made
        finally:
            made.close()


def _scrape(made: Backlog) -> Samples:
    return {
        "/".join((sample.name.removeprefix("orcheo_dispatch_"), *sample.labels.values())): sample.value
        for family in made.collect()
        for sample in family.samples
    }


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scrape reads anew."""
    monkeypatch.setattr(backlog, "FRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("fresh")
def test_backlog_counts_what_waits(database: Database, redis_url: str) -> None:
    runs = insert_runs(database, 5)
    insert_runs(database, 3, triggered_by="chatkit")
    execute(database, "UPDATE workflow_runs SET created_at = now() - interval '400 s' WHERE id = %s", runs[0])
    with store_of(database) as (store, engine), _backlog(database, redis_url) as made:
        claims = claim_all(store, 4)
        store.mark_published(claims[:3])
        store.begin(claims[0], worker_id=uuid4(), lease=30)
        execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
        execute(database, "UPDATE orcheo_dispatch.dispatch SET slot = 'due' WHERE run_id = %s", runs[1])
        for kind, seen_ago in (("worker", 1), ("worker", 600), ("dispatcher", 1), ("beat", 600), ("worker", 90_000)):
            process = Process(ProcessKind(kind))
            process.seen(engine)
            execute(
                database,
                "UPDATE orcheo_dispatch.process SET seen_at = now() - make_interval(secs => %s) WHERE id = %s",
                seen_ago,
                process.id,
            )
        with redis.Redis.from_url(redis_url) as client:
            client.rpush(installation_of(database).runs, "a", "b")
            record = CronRecord(client, installation_of(database).cron_record)
            record.note(CronReport("succeeded"), by_itself=False)
            client.expire(f"{installation_of(database).cron_record}.success", 86_400 - 100)
        found = _scrape(made)
    assert 100 <= found.pop("cron_age_seconds") < 160
    assert found.pop("cron_interval_seconds") == 60
    oldest = found.pop("pending_oldest_age_seconds")
    # The run that began was the oldest, and is not pending any more.
    assert 10 < oldest < 60
    assert found.pop("oldest_transaction_age_transactions") >= 0
    assert found == {
        "database_up": 1,
        "broker_up": 1,
        "pending_runs": 4,
        "pending_late_runs": 0,
        "claimed_runs": 1,
        "published_runs": 2,
        "stuck_runs": 1,
        "unclaimed_runs": 0,
        "begun_elsewhere_runs": 0,
        "isolated_workflows": 0,
        "wanted_workers": 5,
        "due_slots": 1,
        "queue_messages": 2,
        "queue_limit_messages": 200,
        "alive_processes/worker": 1,
        "alive_processes/dispatcher": 1,
        "alive_processes/beat": 0,
        "vanished_processes/worker": 1,
        "vanished_processes/dispatcher": 0,
        "vanished_processes/beat": 0,
    }


def test_late_runs_are_those_older_than_five_minutes_that_are_ours(database: Database, redis_url: str) -> None:
    insert_runs(database, 2)
    insert_runs(database, 2, triggered_by="chatkit")
    execute(database, "UPDATE workflow_runs SET created_at = created_at - interval '299 s'")
    with _backlog(database, redis_url) as made:
        found = _scrape(made)
    assert (found["pending_runs"], found["pending_late_runs"]) == (2, 2)
    assert 300 < found["pending_oldest_age_seconds"] < 400
    with store_of(database) as (_, engine):
        Process(ProcessKind.DISPATCHER, triggers=("*",)).seen(engine)
    with _backlog(database, redis_url) as made:
        assert _scrape(made)["pending_runs"] == 4


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("where", ["here", "in another database"])
def test_open_transaction_is_seen_if_it_is_of_this_database(database: Database, redis_url: str, where: str) -> None:
    name = database.name if where == "here" else "postgres"
    with psycopg.connect(database.dsn, dbname=name) as idle, _backlog(database, redis_url) as made:
        idle.execute("CREATE TEMPORARY TABLE held ()")
        for _ in range(7):
            execute(database, "CREATE TABLE passing ()")
            execute(database, "DROP TABLE passing")
        assert (_scrape(made)["oldest_transaction_age_transactions"] >= 14) is (where == "here")


def test_one_reading_serves_all_who_scrape_soon(database: Database, redis_url: str) -> None:
    with _backlog(database, redis_url) as made:
        first = _scrape(made)
        insert_runs(database)
        assert _scrape(made)["pending_runs"] == first["pending_runs"] == 0


@pytest.mark.usefixtures("fresh")
def test_redis_that_is_away_hides_the_queue_and_nothing_else(database: Database, redis_server: EmbeddedRedis) -> None:
    with _backlog(database, redis_server.url) as made:
        assert _scrape(made)["queue_messages"] == 0
        redis_server.kill()
        found = _scrape(made)
        assert (found["broker_up"], found["database_up"], found["pending_runs"]) == (0, 1, 0)
        assert "queue_messages" not in found


@pytest.mark.usefixtures("fresh")
def test_postgres_that_is_away_is_said_and_its_numbers_are_not(
    postgres_server: EmbeddedPostgres, redis_url: str
) -> None:
    with _backlog(Database("none", postgres_server.url), redis_url) as made:
        postgres_server.kill()
        found = _scrape(made)
    # Since its own start: nobody has dispatched yet.
    assert 0 <= found.pop("cron_age_seconds") < 60
    assert found.pop("cron_interval_seconds") == 60
    assert found == {"database_up": 0, "broker_up": 1, "queue_messages": 0, "queue_limit_messages": 200}


@pytest.mark.usefixtures("fresh")
def test_scrape_does_not_wait_for_a_database_that_hangs(database: Database, redis_url: str) -> None:
    with psycopg.connect(database.dsn) as blocking, _backlog(database, redis_url) as made:
        assert _scrape(made)["database_up"] == 1
        blocking.execute("LOCK TABLE orcheo_dispatch.dispatch")
        began = time.monotonic()
        _scrape(made)
        assert 0.5 < time.monotonic() - began < 3
        blocking.rollback()
