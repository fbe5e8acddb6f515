"""How the room of a claim is divided into shares, and for which workflows a claim asks the database again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, store_of

_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT %(workflow)s || '/' || %(workspace)s || '/' || n, %(workflow)s, 'v', 'pending', 'webhook', '{}', now(), now(),
       %(workspace)s
  FROM generate_series(1, %(count)s) AS n
"""


def _pend(database: Database, count: int, workflow: str, workspace: str = "a") -> None:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_INSERT, {"workflow": workflow, "workspace": workspace, "count": count})


def _by_workflow(claims: list[Claim]) -> Counter[str]:
    return Counter(claim.run_id.partition("/")[0] for claim in claims)


@contextmanager
def _asked(engine: Engine) -> Iterator[list[list[str] | None]]:
    """Yield the workflows that each statement of a claim names: None where it looks at the next ones in turn."""
    asked: list[list[str] | None] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "place_in_workspace" in statement:
            asked.append(parameters["workflows"])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_claim_asks_again_only_for_workflows_with_more_than_their_share(database: Database) -> None:
    for n in range(9):
        _pend(database, 1, f"one{n}")
    _pend(database, 200, "flood")
    with store_of(database) as (store, engine), _asked(engine) as asked:
        claims = claim_all(store, 100)
    assert _by_workflow(claims) == {"flood": 91, **{f"one{n}": 1 for n in range(9)}}
    assert asked == [None, ["flood"]]


def test_claim_does_not_ask_again_where_a_limit_is_reached(database: Database) -> None:
    _pend(database, 5, "w1")
    _pend(database, 5, "w2")
    turns = Turns()
    with store_of(database) as (store, engine), _asked(engine) as asked:
        claims = claim_all(store, 100, turns=turns, limits=Limits(per_workflow=2))
        assert _by_workflow(claims) == {"w1": 2, "w2": 2}
        assert not turns.more
        assert claim_all(store, 100, turns=turns, limits=Limits(per_workflow=2)) == []
    assert asked == [None, None]
    assert not turns.more


def test_workspace_at_its_limit_is_not_asked_for_again(database: Database) -> None:
    for workspace in ("a", "b"):
        _pend(database, 5, "w1", workspace)
    turns, limits = Turns(), Limits(per_workspace=3)
    with store_of(database) as (store, engine):
        assert len(claim_all(store, 100, turns=turns, limits=limits)) == 6
        with _asked(engine) as asked:
            assert claim_all(store, 100, turns=turns, limits=limits) == []
    assert asked == [None]
    assert not turns.more


def test_nothing_is_asked_for_again_while_all_runs_together_are_at_their_limit(database: Database) -> None:
    _pend(database, 5, "w1")
    turns, limits = Turns(), Limits(by_policy=True)
    with store_of(database) as (store, engine):
        Policies(engine).set(ALL, {"max_running": 2}, Author("ada", Interface.COMMAND))
        assert len(claim_all(store, 100, turns=turns, limits=limits)) == 2
        with _asked(engine) as asked:
            assert claim_all(store, 100, turns=turns, limits=limits) == []
    assert asked == [None]
    assert not turns.more
