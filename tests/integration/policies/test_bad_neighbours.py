"""One locked row, one odd value or one special worker harms nothing beside it."""

from __future__ import annotations

import json
import threading
import time
from uuid import uuid4

import psycopg
import pytest
import redis

from orcheo_dispatch.shared.broker.readers import Readers
from orcheo_dispatch.shared.errors import RefusedError
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from orcheo_dispatch.shared.ledger.operators.repairs import LOCKED, repair
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.runs import NO_RULES, Ending, Rules, Run
from orcheo_dispatch.shared.settings.policies import Retries
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, execute, insert_runs, installation_of, one, statuses, store_of
from tests.support.processes.processes import Stack, until

ME = Author("ada", Interface.COMMAND)
_RUNS = 100
_WAITERS = "SELECT count(*) AS waiters FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
_RETRIES = "INSERT INTO orcheo_dispatch.retry (run_id, retries) SELECT run_id, 1 FROM orcheo_dispatch.dispatch"
_LOCKS = {
    Action.REQUEUE: "SELECT FROM orcheo_dispatch.retry WHERE run_id = %s FOR UPDATE",
    Action.ANSWER: "SELECT FROM orcheo_dispatch.question WHERE run_id = %s FOR UPDATE",
}


@pytest.mark.parametrize("action", list(_LOCKS))
def test_a_row_beside_a_run_that_somebody_has_locked_delays_this_run_alone(database: Database, action: Action) -> None:
    runs = insert_runs(database, _RUNS)
    waiting = Ending.waiting("{}", checkpoint_id="c", interrupts=1, keeps_slot=False)
    with store_of(database) as (store, engine):
        claims = claim_all(store, _RUNS)
        begun = store.begin_all(claims, worker_id=uuid4(), lease=30)
        assert all(isinstance(each, Run) for each in begun)
        ending = waiting if action is Action.ANSWER else Ending.failed("x", reason="x")
        store.settle_all(dict.fromkeys(claims, ending))
        execute(database, _RETRIES)
        with psycopg.connect(database.dsn) as other:
            other.execute(_LOCKS[action], [runs[50]])
            began = time.monotonic()
            done = repair(engine, runs, action, ME, answer=json.dumps("yes"))
            took = time.monotonic() - began
        assert {each.run_id: each.refused for each in done if each.refused} == {runs[50]: LOCKED}
        assert took < 5
        assert [each.refused for each in repair(engine, [runs[50]], action, ME, answer='"yes"')] == [None]
    assert statuses(database) == {"pending"}


@pytest.mark.parametrize("until", ["infinity", "-infinity", "12026-01-01"])
def test_a_time_that_no_command_could_show_is_refused(database: Database, until: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(database, "INSERT INTO orcheo_dispatch.policy (paused, paused_until) VALUES (true, %s)", until)
    with store_of(database) as (_, engine):
        with pytest.raises(RefusedError):
            Policies(engine).set(ALL, {"paused": True, "paused_until": until}, ME)
        assert Policies(engine).listed() == []


@pytest.mark.parametrize("value", ["of_a_later_release", "", None, 3, [], {}])
def test_a_rule_that_this_release_does_not_know_is_none(value: object) -> None:
    """Otherwise one run would keep all runs of its message from beginning."""
    policy = json.dumps({"lost_runs": value, "isolation": value, "timeout": 5, "retries": "off"})
    assert Rules.of(policy) == Rules(timeout=5, retries=Retries.OFF)
    assert Rules.of(None) is NO_RULES


def test_a_worker_of_a_named_queue_alone_leaves_the_messages_of_earlier_releases(
    database: Database, stack: Stack, redis_url: str
) -> None:
    """It would move them to the default queue, which it does not consume."""
    insert_runs(database, 5)
    installation = installation_of(database)
    with redis.Redis.from_url(redis_url) as client, store_of(database) as (store, _):
        readers = Readers(client, installation, store, lease=30)
        with stack.running("dispatcher") as dispatcher:
            dispatcher.saw("published=5")
            client.rename(installation.runs, installation.old_runs)
            with stack.running("worker", ORCHEO_WORKER_QUEUES="gpu"):
                until(lambda: store.live_workers(lease=30).alive == 1, what="the worker in the ledger")
                survey = readers.survey()
                assert (survey.new, survey.old) == (frozenset(), frozenset())
                with stack.running("worker"):
                    until(lambda: statuses(database) == {"succeeded"}, what="the runs")
                    assert len(readers.survey().new) == 1


def test_a_pause_that_ends_takes_nothing_with_it_that_another_operator_sets(database: Database) -> None:
    scope = Scope(workflow_id="w")
    with store_of(database) as (_, engine), psycopg.connect(database.dsn) as other:
        policies = Policies(engine)
        policies.set(scope, {"paused": True}, ME)
        other.execute("SELECT pg_advisory_xact_lock(205392149)")
        ended: list[bool] = []
        thread = threading.Thread(target=lambda: ended.append(policies.put(scope, {"paused": None}, ME)))
        thread.start()
        until(lambda: one(database, _WAITERS)["waiters"] == 1, what="the one who waits")
        other.execute("UPDATE orcheo_dispatch.policy SET max_running = 3")
        other.commit()
        thread.join()
        assert ended == [True]
        row = policies.get(scope)
        assert row is not None
        assert (row.paused, row.max_running) == (None, 3)
        assert policies.put(scope, {"max_running": None}, ME)
        assert policies.get(scope) is None
        assert not policies.put(scope, {"max_running": None}, ME)
