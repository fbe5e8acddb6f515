"""A former primary answers, but nobody acknowledges its commits: its standby is unreachable, or was promoted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres
from orcheo_dispatch.shared.ledger.runs import LOCKED, NotBegun, Run
from tests.support.database.databases import Database, make_orcheo_tables, migrate
from tests.support.database.refusals import held
from tests.support.database.runs import claim_all, everything, execute, insert_runs, ledger, store_of
from tests.support.processes.processes import until

_LEASE = 30.0
_WAITS = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def private(postgres_server: EmbeddedPostgres, redis_url: str) -> Database:
    """A database on a server of the test's own."""
    made = Database("postgres", postgres_server.url)
    make_orcheo_tables(made, redis_url)
    migrate(made)
    return made


@contextmanager
def _without_its_standby(database: Database) -> Iterator[None]:
    """Have no commit acknowledged for as long as the block lasts."""
    _set_standbys(database, "unreachable")
    try:
        yield
    finally:
        _set_standbys(database, "")


def _set_standbys(database: Database, names: str) -> None:
    execute(database, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    execute(database, "SELECT pg_reload_conf()")
    until(
        lambda: everything(database, "SELECT FROM pg_settings WHERE name = %s AND setting = %s", _NAMES, names),
        what="the server has read it",
    )


_NAMES = "synchronous_standby_names"


def _unanswered(database: Database, ask: Callable[[], Any]) -> Any:
    """Return the answer to a question that a former primary must not answer, once it is the primary again."""
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(ask()))
    with _without_its_standby(database):
        asking.start()
        until(lambda: answers or everything(database, _WAITS), what="a commit waits for the standby")
        assert not answers, "answered by a server whose commits nobody acknowledges"
    asking.join()
    return answers[0]


def test_begin_is_recovered_only_from_a_server_whose_commits_are_acknowledged(private: Database) -> None:
    """The promoted standby may not know of the begin, and the run may begin there under the same fence."""
    (run_id,) = insert_runs(private)
    worker_id = uuid4()
    with store_of(private) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=worker_id, lease=1.0), Run)
        before = ledger(private, run_id)["lease_expires_at"]
        (run,) = _unanswered(private, lambda: store.begun_by(worker_id, [claim], lease=_LEASE))
        assert isinstance(run, Run)
        assert (run.claim, run.attempt) == (claim, 1)
        assert ledger(private, run_id)["lease_expires_at"] > before
        with held(private, run_id, "orcheo_dispatch.dispatch"):
            assert store.begun_by(worker_id, [claim], lease=_LEASE) == [NotBegun(claim, LOCKED)]
        assert store.begun_by(uuid4(), [claim], lease=_LEASE) == []


def test_locked_row_counts_as_held_only_on_a_server_whose_commits_are_acknowledged(private: Database) -> None:
    """The promoted standby knows nothing of the lock: the run may have been reaped there."""
    insert_runs(private)
    with store_of(private) as (store, _):
        (claim,) = claim_all(store)
        assert isinstance(store.begin(claim, worker_id=uuid4(), lease=_LEASE), Run)
        with held(private, claim.run_id, "orcheo_dispatch.dispatch"):
            assert _unanswered(private, lambda: store.heartbeat([claim], lease=_LEASE)) == {claim: False}
        assert _unanswered(private, lambda: store.heartbeat([claim], lease=_LEASE)) == {claim: True}
