"""Limits of running runs, of a workflow and of a workspace: never exceeded, and reached, whoever claims."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, execute, insert_runs, store_of
from tests.support.database.uncommitted import Uncommitted
from tests.support.processes.processes import Stack, until

_PENDING = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT 'w' || w || '/' || n, 'w' || w, 'v', 'pending', 'webhook', '{}', now(), now(),
       CASE WHEN w %% 3 > 0 THEN 's' || w %% 3 END
  FROM generate_series(1, %s) AS w, generate_series(1, %s) AS n
"""
_IN_A_WORKSPACE = "UPDATE workflow_runs SET workspace_id = 's0' WHERE workspace_id IS NULL"
# Of all workspaces, so that a run of any of them may begin.
_WORKFLOWS = """
INSERT INTO workflows (id, is_archived, payload, created_at, updated_at)
SELECT 'w' || w, false, '{}', now(), now() FROM generate_series(1, %s) AS w
"""
_LIVE = "orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published', 'running')"
_MOST = f"""
SELECT COALESCE((SELECT max(runs) FROM (SELECT count(*) AS runs FROM {_LIVE} GROUP BY workflow_id) AS w), 0),
       COALESCE((SELECT max(runs) FROM (SELECT count(*) AS runs FROM {_LIVE} AND workspace_id IS NOT NULL
                                         GROUP BY workspace_id) AS s), 0)
"""
_DISPATCHERS = 4


@contextmanager
def _watched(database: Database) -> Iterator[list[tuple[int, int]]]:
    """Yield the most live runs of a workflow and of a workspace, as looked at again and again meanwhile."""
    seen: list[tuple[int, int]] = [(0, 0)]
    stopping = threading.Event()

    def watch() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            while not stopping.is_set():
                workflow, workspace = connection.execute(_MOST).fetchone() or (0, 0)
                seen[0] = max(seen[0][0], workflow), max(seen[0][1], workspace)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        thread.join()


def _in_threads(act: Callable[[list[BaseException]], None]) -> None:
    """Have several dispatchers act at once; each is given the failures of all, to end where there is one."""
    failures: list[BaseException] = []
    start = threading.Barrier(_DISPATCHERS)

    def run() -> None:
        try:
            start.wait()
            act(failures)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(_DISPATCHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "oldest first"])
@pytest.mark.parametrize(
    ("limits", "most"),
    [(Limits(3, None), (3, None)), (Limits(None, 5), (None, 5)), (Limits(2, 7), (2, 7))],
    ids=["workflow", "workspace", "both"],
)
def test_limits_hold_exactly_with_dispatchers_that_claim_at_once(
    database: Database, limits: Limits, most: tuple[int | None, int | None], in_turn: bool
) -> None:
    """Each dispatcher claims, begins and settles its own claims, so that what others free is claimed at once."""
    runs = 12 * 25
    execute(database, _WORKFLOWS, 12)
    execute(database, _PENDING, 12, 25)
    execute(database, _IN_A_WORKSPACE)
    ended: list[Claim] = []

    def dispatch(failures: list[BaseException]) -> None:
        turns = Turns()
        with store_of(database, connections=1) as (store, _):
            while len(ended) < runs and not failures:
                for claim in claim_all(store, 20, limits=limits, turns=turns, in_turn=in_turn):
                    assert isinstance(store.begin(claim, worker_id=uuid4(), lease=60), Run)
                    assert store.settle(claim, Ending.succeeded("{}"))
                    ended.append(claim)

    with _watched(database) as seen:
        _in_threads(dispatch)
    assert len({claim.run_id for claim in ended}) == len(ended) == runs
    for found, limit in zip(seen[0], most, strict=True):
        assert limit is None or found <= limit


@pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "oldest first"])
@pytest.mark.parametrize("limits", [Limits(3, None), Limits(None, 5), Limits(2, 7), Limits(3, 5), Limits(100, 200)])
def test_limits_are_reached_and_not_exceeded_where_nothing_ends(
    database: Database, limits: Limits, in_turn: bool
) -> None:
    execute(database, _PENDING, 12, 10)

    def dispatch(failures: list[BaseException]) -> None:
        turns = Turns()
        with store_of(database, connections=1) as (store, _):
            for _ in range(20):
                claim_all(store, 7, limits=limits, turns=turns, in_turn=in_turn)

    _in_threads(dispatch)
    per_workflow, per_workspace = limits.per_workflow or 10, limits.per_workspace or 1000
    expected = {
        "s1": min(4 * min(per_workflow, 10), per_workspace),
        "s2": min(4 * min(per_workflow, 10), per_workspace),
        None: 4 * min(per_workflow, 10),
    }
    rows = everything(database, f"SELECT workspace_id, count(*) AS runs FROM {_LIVE} GROUP BY workspace_id")
    assert {row["workspace_id"]: row["runs"] for row in rows} == expected
    of_workflow = everything(
        database, f"SELECT max(runs) FROM (SELECT count(*) AS runs FROM {_LIVE} GROUP BY workflow_id) w"
    )
    assert of_workflow[0]["max"] <= per_workflow


@pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "oldest first"])
def test_limit_of_a_workflow_counts_its_runs_in_every_workspace(database: Database, in_turn: bool) -> None:
    for workspace in ("s1", "s2", None):
        insert_runs(database, 10, workspace_id=workspace)
    with store_of(database) as (store, _):
        turns = Turns()
        claims = [claim_all(store, 10, limits=Limits(4), turns=turns, in_turn=in_turn) for _ in range(6)]
    assert sum(map(len, claims)) == 4


@pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "oldest first"])
def test_workflow_at_its_limit_holds_nobody_up(database: Database, in_turn: bool) -> None:
    execute(database, _PENDING, 1, 500)
    insert_runs(database, 5)
    execute(database, "UPDATE workflow_runs SET created_at = created_at - interval '1 hour' WHERE workflow_id = 'w1'")
    with store_of(database) as (store, _):
        turns = Turns()
        claimed = [
            claim for _ in range(3) for claim in claim_all(store, 20, limits=Limits(8), turns=turns, in_turn=in_turn)
        ]
        assert len(claimed) == 8 + 5
        assert not turns.more, "what has reached its limit is nothing to go on with"


def test_claims_under_limits_wait_for_each_other_and_see_what_the_other_claimed(database: Database) -> None:
    """A snapshot taken before the lock was waited for would not show it."""
    execute(database, _PENDING, 1, 50)
    with store_of(database) as (store, engine):
        held = engine.connect()
        inner = Store(Uncommitted(held))  # type: ignore[arg-type]
        with held.begin():
            assert len(claim_all(inner, 10, limits=Limits(10))) == 10
            second: list[Claim] = []
            other = threading.Thread(target=lambda: second.extend(claim_all(store, 10, limits=Limits(10))))
            other.start()
            until(lambda: _somebody_waits(database) or not other.is_alive(), what="the other waits")
        other.join()
        held.close()
    assert second == []


def test_limit_holds_with_real_dispatchers(database: Database, redis_url: str, tmp_path: Path) -> None:
    execute(database, _PENDING, 4, 40)
    stack = Stack(database, redis_url, tmp_path / "effects")
    limit = {"ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKFLOW": "3", "ORCHEO_DISPATCH_POLL_INTERVAL": "0.05"}
    with (
        _watched(database) as seen,
        stack.running("dispatcher", **limit),
        stack.running("dispatcher", **limit),
        stack.running("worker"),
    ):
        until(lambda: seen[0][0] == 3, what="the limit is reached")
        until(
            lambda: not everything(database, "SELECT FROM workflow_runs WHERE status IN ('pending', 'running')"),
            what="all have ended",
        )
    assert seen[0][0] == 3


def _somebody_waits(database: Database) -> bool:
    return bool(everything(database, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
