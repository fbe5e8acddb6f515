"""Runs that are claimed together get the same fence: nothing that is done to one of them changes another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, insert_runs, store_of

WORKER, OTHER = uuid4(), uuid4()

type Act = Callable[[Store, Sequence[Claim]], set[Claim]]
"""Does something to claims, and returns those for which that had an effect, as far as the store tells."""


def _begin(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    answers = store.begin_all(claims, worker_id=WORKER, lease=3600)
    return {Claim(answer.run_id, answer.fence) for answer in answers if isinstance(answer, Run)}


def _settle(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    return {*store.settle_all({claim: Ending.succeeded("{}") for claim in claims}).settled}


def _publish(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    store.mark_published(claims)
    return set()


def _release(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    store.release(claims, reason="test")
    return set()


def _extend(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    store.extend(claims, lease=3600, reason="test")
    return set()


def _refuse(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    return {*store.refuse(dict.fromkeys(claims, "no"), worker_id=WORKER, lock_timeout=5)}


def _heartbeat(store: Store, claims: Sequence[Claim]) -> set[Claim]:
    return {*store.heartbeat(claims, lease=3600)}


_ACTS: dict[str, tuple[Act, bool]] = {
    "publish": (_publish, False),
    "extend": (_extend, False),
    "release": (_release, False),
    "begin": (_begin, False),
    "refuse": (_refuse, False),
    "heartbeat": (_heartbeat, True),
    "settle": (_settle, True),
}
"""Each with whether it is done to runs that have begun."""
_EACH = pytest.mark.parametrize(("act", "begun"), _ACTS.values(), ids=_ACTS)


def _claimed(store: Store, database: Database, *, begun: bool) -> list[Claim]:
    """Claim three runs together. With `begun`, the last of them is another worker's."""
    insert_runs(database, 3)
    claims = claim_all(store)
    assert len({claim.fence for claim in claims}) == 1, "this test is about runs of one fence"
    if begun:
        for claim, worker in zip(claims, (WORKER, WORKER, OTHER), strict=True):
            assert isinstance(store.begin(claim, worker_id=worker, lease=30), Run)
    return claims


def _state(database: Database, *run_ids: str) -> list[dict[str, Any]]:
    return everything(
        database,
        "SELECT d.*, r.status, r.payload, r.updated_at FROM orcheo_dispatch.dispatch AS d"
        " JOIN workflow_runs AS r ON r.id = run_id WHERE run_id = ANY (%s) ORDER BY run_id",
        [*run_ids],
    )


@_EACH
def test_act_on_one_run_leaves_the_others_alone(database: Database, act: Act, begun: bool) -> None:
    with store_of(database) as (store, _):
        first, *others = _claimed(store, database, begun=begun)
        ids = [claim.run_id for claim in others]
        before, mine = _state(database, *ids), _state(database, first.run_id)
        assert act(store, [first]) <= {first}
        assert _state(database, *ids) == before
        assert _state(database, first.run_id) != mine


@_EACH
def test_stale_claim_is_not_taken_for_a_live_one_beside_it(database: Database, act: Act, begun: bool) -> None:
    with store_of(database) as (store, _):
        first, second, _ = _claimed(store, database, begun=begun)
        stale = Claim(first.run_id, first.fence - 1)
        before = _state(database, first.run_id)
        assert act(store, [stale, second]) <= {second}
        assert _state(database, first.run_id) == before


@_EACH
def test_stale_claim_of_a_locked_row_is_not_reported_as_held(database: Database, act: Act, begun: bool) -> None:
    with store_of(database) as (store, _), psycopg.connect(database.dsn) as other:
        first, second, _ = _claimed(store, database, begun=begun)
        stale = Claim(first.run_id, first.fence - 1)
        other.execute("SELECT FROM orcheo_dispatch.dispatch WHERE run_id = %s FOR UPDATE", (first.run_id,))
        assert act(store, [stale, second]) <= {second}


def test_heartbeat_tells_which_runs_are_locked_and_which_are_not_its_own(database: Database) -> None:
    with store_of(database) as (store, engine), psycopg.connect(database.dsn) as other:
        first, second, third = _claimed(store, database, begun=True)
        own = Store(engine, worker_id=WORKER)
        other.execute("SELECT FROM orcheo_dispatch.dispatch FOR UPDATE")
        assert own.heartbeat([first, second, third], lease=3600) == {first: False, second: False}
        assert own.heartbeat([first], lease=3600) == {first: False}
        other.rollback()
        assert own.heartbeat([first, second, third], lease=3600) == {first: True, second: True}
        own.settle(first, Ending.succeeded("{}"))
        other.execute("SELECT FROM orcheo_dispatch.dispatch FOR UPDATE")
        assert own.heartbeat([first, second], lease=3600) == {second: False}
        assert store.heartbeat([second, third], lease=3600) == {second: False, third: False}


def test_settle_tells_which_runs_are_locked_and_which_are_not_its_own(database: Database) -> None:
    ending = Ending.succeeded("{}")
    with store_of(database) as (store, engine), psycopg.connect(database.dsn) as other:
        first, second, third = _claimed(store, database, begun=True)
        own = Store(engine, worker_id=WORKER)
        for table in ("orcheo_dispatch.dispatch", "workflow_runs"):
            other.execute(f"SELECT FROM {table} FOR UPDATE".encode())
            told = own.settle_all(dict.fromkeys([first, second, third], ending))
            assert not told.settled
            assert told.locked == {first, second}
            assert own.settle_all({first: ending}).locked == {first}
            assert store.settle_all(dict.fromkeys([second, third], ending)).locked == {second, third}
            other.rollback()
        assert {*own.settle_all(dict.fromkeys([first, third], ending)).settled} == {first}
        other.execute("SELECT FROM orcheo_dispatch.dispatch FOR UPDATE")
        assert own.settle_all(dict.fromkeys([first, second], ending)).locked == {second}
