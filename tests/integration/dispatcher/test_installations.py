"""Several installations on one Redis database: each executes its own runs, and nothing of another's is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from celery import Celery

from orcheo_dispatch.dispatcher.publishing.publish import Publisher
from orcheo_dispatch.shared.broker.app import EXECUTE_RUN, make_app
from orcheo_dispatch.shared.broker.held import held_claims
from orcheo_dispatch.shared.broker.installation import Installation, find_installation
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim, ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.databases import Database, cloned
from tests.support.database.runs import (
    all_are,
    claim_all,
    everything,
    execute,
    insert_runs,
    installation_of,
    settings_for,
    store_of,
    times_claimed,
)
from tests.support.processes.processes import Stack, until
from tests.support.servers.servers import Servers

_RUNS = 20
_LONG_LEASE = {"ORCHEO_WORKER_LEASE": "600"}


@pytest.fixture
def other(admin: psycopg.Connection[Any], servers: Servers, template: Database) -> Iterator[Database]:
    """The database of another installation, made from the same template."""
    with cloned(admin, servers, template.name) as clone:
        yield replace(clone, roles=template.roles)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def stack(database: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(database, redis_url, tmp_path / "ours")


@pytest.fixture
def other_stack(other: Database, redis_url: str, tmp_path: Path) -> Stack:
    return Stack(other, redis_url, tmp_path / "theirs")


def _publish_as_before(database: Database, redis_url: str, claims: list[Claim]) -> None:
    """Publish as a dispatcher of the last release: to a queue without a name, with no header of ours but the claims."""
    with Celery(broker=redis_url, set_as_current=False) as app:
        for claim in claims:
            pairs = [claim.run_id, claim.fence]
            app.send_task(EXECUTE_RUN, args=pairs, queue="orcheo.runs", headers={"claims": pairs}, argsrepr="")
    with store_of(database) as (store, _):
        store.mark_published(claims)


def _worker_of_the_last_release(database: Database) -> Process:
    """Have the ledger know a worker that is silent in Redis; to be asked with a long lease."""
    process = Process(ProcessKind.WORKER)
    with store_of(database) as (_, engine):
        process.seen(engine)
    return process


def test_two_installations_on_one_redis_do_not_meet(
    database: Database, other: Database, stack: Stack, other_stack: Stack, client: redis.Redis
) -> None:
    for each in (database, other):
        insert_runs(each, _RUNS)
    with ExitStack() as running:
        processes = [
            running.enter_context(each.running(kind))
            for each in (stack, other_stack)
            for kind in ("worker", "dispatcher", "beat")
        ]
        until(lambda: all_are(database, "succeeded") and all_are(other, "succeeded"), what="every run succeeded")
        # A tick that is being taken at this moment is unacknowledged: looked at until there is none.
        until(lambda: _names(client) <= {"orcheo.dispatch"}, what="nothing is left over")
        notes = set(client.scan_iter("orcheo.readers:*"))
    log = "".join(process.log for process in processes)
    for event in ("run_skipped", "run_unknown", "claims_reconciled", "malformed_message"):
        assert event not in log
    # No claim was lost to the other: each run began under its first fence.
    for each in (database, other):
        assert times_claimed(each) == {1}
    assert len(notes) == 2, "each worker says that it reads its queue"


def test_installations_of_two_databases_differ_and_those_of_one_agree(database: Database, other: Database) -> None:
    names = [installation_of(each).name for each in (database, database, other)]
    assert names[0] == names[1] != names[2]
    if database.roles is not None:
        from tests.support.database.roles import Kind

        for kind in (Kind.WORKER, Kind.DISPATCHER):
            assert installation_of(replace(database, dsn=database.dsn_of(kind))).name == names[0]


def test_namespace_replaces_the_identity_and_asks_no_database() -> None:
    nowhere = Database("nothing", "postgresql://nobody@127.0.0.1:1/nothing")
    found = installation_of(nowhere, namespace="staging")
    assert (found.runs, found.dispatch) == ("orcheo.runs:staging", "orcheo.dispatch:staging")
    assert installation_of(nowhere, namespace="staging", queue="slow").runs == "orcheo.runs:staging:slow"
    with pytest.raises(DatabaseError):
        installation_of(nowhere)


def test_database_that_does_not_tell_its_identity_asks_for_a_namespace(
    admin: psycopg.Connection[Any], database: Database
) -> None:
    if database.roles is None:
        pytest.skip("this server lets the session make no roles")
    from tests.support.database.roles import Kind

    weak = replace(database, dsn=database.dsn_of(Kind.WORKER))
    with psycopg.connect(database.dsn, autocommit=True) as owner:
        owner.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    with pytest.raises(DatabaseError, match="set ORCHEO_DISPATCH_NAMESPACE"):
        installation_of(weak)
    assert installation_of(weak, namespace="prod").name == "prod"


def test_worker_executes_what_a_dispatcher_of_the_last_release_published(
    database: Database, other: Database, stack: Stack, redis_url: str, client: redis.Redis
) -> None:
    """And leaves to another installation what is its own, in its order."""
    insert_runs(database, _RUNS)
    insert_runs(other, 5)
    with store_of(other) as (store, _):
        theirs = claim_all(store)
    with store_of(database) as (store, _):
        ours = claim_all(store)
    _publish_as_before(other, redis_url, theirs[:3])
    _publish_as_before(database, redis_url, ours)
    _publish_as_before(other, redis_url, theirs[3:])
    with stack.running("worker") as worker, stack.running("worker"):
        until(lambda: all_are(database, "succeeded"), what="every run of ours succeeded")
        worker.saw("foreign_messages_ignored")
    left = [json.loads(raw)["headers"]["claims"] for raw in client.lrange("orcheo.runs", 0, -1)]
    assert left == [[claim.run_id, claim.fence] for claim in reversed(theirs)]
    assert len(stack.noted("begun")) == _RUNS


@pytest.mark.parametrize("beside", [False, True])
def test_dispatcher_publishes_to_the_old_queue_while_a_worker_of_the_last_release_is_alive(
    database: Database, stack: Stack, client: redis.Redis, beside: bool
) -> None:
    with ExitStack() as running:
        if beside:
            running.enter_context(stack.running("worker"))
        old = _worker_of_the_last_release(database)
        insert_runs(database)
        with stack.command("poll", **_LONG_LEASE) as poll:
            assert poll.exit_code() == 0
            poll.finish()
        assert "queue_changed queue=orcheo.runs\n" in poll.log
        if not beside:
            assert client.llen("orcheo.runs") == 1
            running.enter_context(stack.running("worker"))
        until(lambda: all_are(database, "succeeded"), what="a worker of this release takes it all the same")
        with store_of(database) as (_, engine):
            old.gone(engine)
        insert_runs(database)
        with stack.command("poll", **_LONG_LEASE) as poll:
            assert poll.exit_code() == 0
            poll.finish()
        assert "queue_changed" not in poll.log
        until(lambda: all_are(database, "succeeded"), what="the next run succeeded")


def test_worker_leaves_to_workers_of_the_last_release_what_it_has_no_room_for(
    database: Database, stack: Stack, redis_url: str, client: redis.Redis
) -> None:
    old = _worker_of_the_last_release(database)
    insert_runs(database, 40, inputs={"do": "wait", "seconds": 3600})
    with store_of(database) as (store, engine):
        claims = claim_all(store)
        _publish_as_before(database, redis_url, claims)
        ours = installation_of(database).runs
        with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="2", **_LONG_LEASE):
            until(lambda: client.llen(ours) == 8, what="what soon finds room was moved")
            until(lambda: len(stack.noted("begun")) == 2, what="two runs began")
            # Messages are moved many times a second. A second worker tells when that has happened again.
            with stack.running("worker", ORCHEO_WORKER_CONCURRENCY="2", **_LONG_LEASE):
                until(lambda: len(stack.noted("begun")) == 4, what="two more began")
                until(lambda: client.llen(ours) == 8, what="as many were moved")
            left = [json.loads(raw)["headers"]["claims"] for raw in client.lrange("orcheo.runs", 0, -1)]
            assert len(left) in range(40 - 4 - 8 - 2, 40 - 4 - 8 + 1)
            assert left == [[claim.run_id, claim.fence] for claim in reversed(claims[-len(left) :])], "the newest"
            old.gone(engine)
            until(lambda: client.llen("orcheo.runs") == 0, what="nobody else is alive: all were moved")


def test_what_waits_for_workers_of_this_release_is_put_back_when_only_old_ones_are_left(
    database: Database, stack: Stack, redis_url: str, client: redis.Redis
) -> None:
    """By the dispatcher where the last of them was killed; the oldest first."""
    installation = installation_of(database)
    insert_runs(database, 5)
    with store_of(database) as (store, _):
        claims = claim_all(store)
        app = make_app("test", settings_for(database, redis_url), installation)
        assert Publisher(app, installation).publish(claims[:3])[1] is None
        app.close()
        _publish_as_before(database, redis_url, claims[3:])
    _worker_of_the_last_release(database)
    with stack.command("poll", **_LONG_LEASE) as poll:
        poll.saw("messages_returned queue=orcheo.runs messages=3")
        assert poll.exit_code() == 0
    assert client.llen(installation.runs) == 0
    waiting = [json.loads(raw)["headers"]["claims"][0] for raw in reversed(client.lrange("orcheo.runs", 0, -1))]
    assert waiting == [claim.run_id for claim in claims]


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_worker_that_drains_puts_back_what_only_old_workers_could_take(
    database: Database, stack: Stack, redis_url: str, client: redis.Redis, isolation: str
) -> None:
    _worker_of_the_last_release(database)
    insert_runs(database, 20, inputs={"do": "wait", "seconds": 3600})
    with store_of(database) as (store, _):
        _publish_as_before(database, redis_url, claim_all(store))
    variables = {
        "ORCHEO_WORKER_CONCURRENCY": "2",
        "ORCHEO_WORKER_DRAIN_TIMEOUT": "2",
        "ORCHEO_WORKER_ISOLATION": isolation,
    }
    with stack.command("worker", **variables, **_LONG_LEASE) as worker:
        until(lambda: len(stack.noted("begun")) == 2, what="two runs began")
        until(lambda: client.llen(installation_of(database).runs) >= 7, what="others wait for room")
        worker.signal(Signals.SIGTERM)
        assert worker.exit_code() == 0
    assert client.llen(installation_of(database).runs) == 0
    assert client.llen("orcheo.runs") == 18, "no message waits for a lease"
    assert not client.keys("orcheo.readers:*"), "a worker that has ended reads no queue"


def test_message_in_the_queue_of_the_last_release_is_not_lost(
    database: Database, redis_url: str, client: redis.Redis
) -> None:
    insert_runs(database, 3)
    with store_of(database) as (store, _):
        claims = claim_all(store)
    _publish_as_before(database, redis_url, claims[:2])
    held = held_claims(client, installation_of(database), claims)
    assert held.waiting == set(claims[:2])


def test_held_claims_are_read_in_pieces_to_a_limit(database: Database, redis_url: str, client: redis.Redis) -> None:
    """Among many more of the same name; and what stands behind a hundred thousand counts as waiting."""
    installation = installation_of(database)
    app = make_app("test", settings_for(database, redis_url), installation)
    wanted = [Claim(str(uuid4()), 1) for _ in range(2)]
    assert Publisher(app, installation).publish(wanted[:1])[1] is None
    raw = client.lindex(installation.runs, 0)
    assert raw is not None
    client.lpush(installation.runs, *[b"{}"] * 2500)
    client.config_resetstat()
    assert held_claims(client, installation, wanted).waiting == {wanted[0]}
    assert client.info("commandstats")["cmdstat_lrange"]["calls"] == 7
    for _ in range(20):
        client.lpush(installation.runs, *[b"{}"] * 5000)
    assert held_claims(client, installation, wanted).waiting == set(wanted)
    app.close()


def test_run_that_the_ledger_never_heard_of_is_put_back_for_another_worker(
    database: Database, other: Database, stack: Stack, other_stack: Stack
) -> None:
    """Two databases under one name: each worker gets the other's messages, and says so."""
    named = {"ORCHEO_DISPATCH_NAMESPACE": "same"}
    (run_id,) = insert_runs(other)
    with stack.running("worker", **named) as stranger:
        with other_stack.command("poll", **named) as poll:
            assert poll.exit_code() == 0
        stranger.saw(f"run_unknown run_id={run_id}")
        assert "dropped=False" in stranger.log
        with other_stack.running("worker", **named):
            until(lambda: all_are(other, "succeeded"), what="the run succeeded")
    assert times_claimed(other) == {1}
    assert stack.noted("begun") == []
    assert stranger.log.count("run_unknown") == 1


def test_stale_and_unknown_messages_are_told_apart_and_rationed(
    database: Database, stack: Stack, redis_url: str
) -> None:
    (run_id,) = insert_runs(database)
    with store_of(database) as (store, _):
        claim_all(store)
    execute(database, "UPDATE orcheo_dispatch.dispatch SET fence = 7")
    installation = installation_of(database)
    app = make_app("test", settings_for(database, redis_url), installation)
    with stack.running("worker") as worker, redis.Redis.from_url(redis_url) as client:
        published, error = Publisher(app, installation).publish([Claim(run_id, 3)] * 50)
        assert (len(published), error) == (50, None)
        with Celery(broker=redis_url, set_as_current=False) as forger:
            for n in range(50):
                forger.send_task(EXECUTE_RUN, args=[f"nobody-{n}", 1], queue=installation.runs)
        until(lambda: not client.llen(installation.runs), what="all were taken")
        worker.saw("run_unknown")
        worker.saw("reason=stale")
    app.close()
    assert worker.log.count("reason=stale") == worker.log.count("run_unknown") == 20
    assert "dropped=True" in worker.log, "a message without the name of an installation is nobody's"


def test_beat_without_a_database_ticks_every_dispatcher(database: Database, stack: Stack, other_stack: Stack) -> None:
    with other_stack.running("beat") as beat, stack.running("dispatcher", ORCHEO_DISPATCH_POLL_INTERVAL="1"):
        beat.saw("installation_unknown")
        ticked = "SELECT FROM orcheo_dispatch.process WHERE kind = 'beat'"
        until(lambda: everything(database, ticked), what="a tick came")


def test_beat_that_knows_its_installation_ticks_no_other(
    database: Database, other: Database, stack: Stack, other_stack: Stack
) -> None:
    ticked = "SELECT FROM orcheo_dispatch.process WHERE kind = 'beat'"
    with (
        stack.running("dispatcher") as stranger,
        other_stack.running("dispatcher"),
        other_stack.running("beat", ORCHEO_POSTGRES_DSN=f"{other.dsn}?application_name=beat") as beat,
    ):
        beat.saw(f"installation_known installation={find_installation(settings_for(other)).name}")
        until(lambda: everything(other, ticked), what="a tick came")
        stranger.saw("beat_silent")
    assert Installation("x").dispatch == "orcheo.dispatch:x"


def test_each_message_carries_the_installation(database: Database, stack: Stack, client: redis.Redis) -> None:
    insert_runs(database)
    with stack.command("poll") as poll:
        assert poll.exit_code() == 0
    name = installation_of(database).name
    (raw,) = client.lrange(f"orcheo.runs:{name}", 0, -1)
    assert json.loads(raw)["headers"]["orcheo_dispatch_installation"] == name


def _names(client: redis.Redis) -> set[str]:
    """Return the keys of both installations, but for the notes of workers that they read a queue."""
    names = {key.decode() for key in client.scan_iter("orcheo.*")}
    return {name for name in names if not name.startswith("orcheo.readers:")}
