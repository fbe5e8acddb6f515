"""Whose runs are claimed: in turn by workspace and by workflow, so that who floods holds nobody else up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from orcheo_dispatch.dispatcher.app import Dispatcher, make_dispatcher_app
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX, TURNS_INDEX, Claim
from orcheo_dispatch.shared.ledger.turns import Turns
from orcheo_dispatch.shared.schema.migrate import migrate
from tests.support.database.databases import Database
from tests.support.database.runs import claim_all, everything, execute, nth_claim, settings_for, store_of
from tests.support.processes.processes import Stack

_INSERT = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT %(workflow)s || '/' || lpad(n::text, 6, '0'), %(workflow)s, 'v', 'pending', %(by)s, '{}',
       now() - make_interval(secs => %(age)s - n * 0.001), now(), %(workspace)s
  FROM generate_series(1, %(count)s) AS n
"""


def _pend(
    database: Database, count: int, workflow: str, workspace: str | None = "a", *, age: float = 60, by: str = "webhook"
) -> None:
    """Insert so many pending runs; the name of each begins with its workflow, and sorts by age."""
    parameters = {"workflow": workflow, "workspace": workspace, "count": count, "age": age, "by": by}
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_INSERT, parameters)


def _by_workflow(claims: list[Claim]) -> Counter[str]:
    return Counter(claim.run_id.partition("/")[0] for claim in claims)


def test_workflow_that_floods_holds_nobody_up(database: Database) -> None:
    _pend(database, 20_000, "flood", age=3600)
    _pend(database, 10, "ten", age=1)
    with store_of(database) as (store, _):
        claims = claim_all(store, 100)
    assert _by_workflow(claims) == {"flood": 90, "ten": 10}, "and no room is left unused"
    assert _by_workflow(claims[:20]) == {"flood": 10, "ten": 10}, "nor do they wait behind it in Redis"


def test_workspace_that_floods_by_many_workflows_holds_nobody_up(database: Database) -> None:
    for n in range(200):
        _pend(database, 20, f"flood{n:03}", "a", age=3600)
    _pend(database, 10, "ten", "b", age=1)
    with store_of(database) as (store, _):
        claims = claim_all(store, 20)
    assert _by_workflow(claims)["ten"] == 10


def test_oldest_are_first_within_a_workflow(database: Database) -> None:
    for workflow in ("w1", "w2", "w3"):
        _pend(database, 50, workflow)
    turns, claimed = Turns(), []
    with store_of(database) as (store, _):
        while claims := claim_all(store, 7, turns=turns):
            claimed += claims
    for workflow in ("w1", "w2", "w3"):
        of_workflow = [claim.run_id for claim in claimed if claim.run_id.startswith(workflow)]
        assert len(of_workflow) == 50
        assert of_workflow == sorted(of_workflow)


@pytest.mark.parametrize(("workspaces", "workflows"), [(1, 3000), (1500, 2), (3000, 1), (60, 50)])
def test_thousands_of_workflows_all_get_their_turn(database: Database, workspaces: int, workflows: int) -> None:
    """As many claims as there are workflows, each with more to do: everybody had one before anybody had two."""
    execute(
        database,
        "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,"
        " updated_at, workspace_id) SELECT 'w' || s || '.' || w || '/' || n, 'w' || s || '.' || w, 'v', 'pending',"
        " 'webhook', '{}', now() - make_interval(secs => w), now(), 's' || s"
        " FROM generate_series(1, %s) AS s, generate_series(1, %s) AS w, generate_series(1, 3) AS n",
        workspaces,
        workflows,
    )
    turns, claimed = Turns(), list[Claim]()
    with store_of(database) as (store, _):
        while len(claimed) < workspaces * workflows:
            claims = claim_all(store, 50, turns=turns)
            assert len(claims) == 50
            claimed += claims
    turn = _by_workflow(claimed)
    assert len(turn) >= 0.98 * workspaces * workflows, "but for those at the ends of windows"
    assert max(turn.values()) <= 2


def test_turns_go_round_what_is_claimed_already(database: Database) -> None:
    """Claimed runs stay pending until they begin: their workflows must not hide the one that has more."""
    for n in range(300):
        _pend(database, 1, f"one{n:03}", f"s{n % 7}")
    with store_of(database) as (store, _):
        turns = Turns()
        assert len(claim_all(store, 300, turns=turns)) == 300
        _pend(database, 5, "zz", "s3")
        assert _by_workflow(claim_all(store, 100, turns=turns)) == {"zz": 5}
        rounds = 0
        while turns.more:
            assert claim_all(store, 100, turns=turns) == []
            rounds += 1
            assert rounds < 20, "a dispatcher with nothing to claim does not spin"


def test_claim_says_that_there_is_more(database: Database) -> None:
    _pend(database, 12, "w1")
    with store_of(database) as (store, _):
        turns = Turns()
        assert [(len(claim_all(store, 5, turns=turns)), turns.more) for _ in range(4)] == [
            (5, True),
            (5, True),
            (2, False),
            (0, False),
        ]


def test_blank_claims_of_others_runs_come_to_an_end(database: Database) -> None:
    """Thousands of workflows with nothing but runs that are not ours: looked at in turn, without spinning."""
    execute(
        database,
        "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at,"
        " updated_at) SELECT 'r' || n, 'w' || n, 'v', 'pending', 'chatkit', '{}', now(), now()"
        " FROM generate_series(1, 5000) AS n",
    )
    _pend(database, 1, "zzz", None)
    with store_of(database) as (store, _):
        turns, claims, rounds = Turns(), [], 0
        while turns.more or rounds == 0:
            claims += claim_all(store, 10, turns=turns)
            rounds += 1
            assert rounds < 30
        for _ in range(10):
            claims += claim_all(store, 10, turns=turns)
    assert _by_workflow(claims) == {"zzz": 1}


@pytest.mark.parametrize("without", [(TURNS_INDEX,), (TURNS_INDEX, PENDING_INDEX)])
def test_without_the_index_the_oldest_are_claimed_first_and_that_is_said(
    database: Database, redis_url: str, tmp_path: Path, without: tuple[str, ...]
) -> None:
    execute(database, f"DROP INDEX {', '.join(without)}")
    _pend(database, 500, "flood", age=3600)
    _pend(database, 10, "ten", age=1)
    stack = Stack(database, redis_url, tmp_path / "effects")
    with stack.running("dispatcher", ORCHEO_DISPATCH_BATCH_SIZE="50") as dispatcher:
        dispatcher.saw(f"index_missing index={TURNS_INDEX}")
        dispatcher.saw("published=50")
        assert not _claimed_of(database, "ten")
        migrate(settings_for(database))
        dispatcher.saw(f"index_found index={TURNS_INDEX}")


def _claimed_of(database: Database, workflow: str) -> int:
    return len(everything(database, "SELECT FROM orcheo_dispatch.dispatch WHERE workflow_id = %s", workflow))


def test_poll_goes_on_at_once_while_there_is_more(database: Database, redis_url: str) -> None:
    _pend(database, 130, "flood", age=3600)
    _pend(database, 10, "ten", age=1)
    settings = settings_for(database, redis_url, batch_size=50, max_queued=1000)
    installation = find_installation(settings)
    app = make_dispatcher_app(settings, installation)
    dispatcher = Dispatcher(settings, app, installation)
    try:
        reports = [dispatcher.poller.poll() for _ in range(4)]
    finally:
        dispatcher.close()
        app.close()
    assert [(report.claimed, report.next_delay) for report in reports] == [(50, 0.0), (50, 0.0), (40, None), (0, None)]


def test_run_outside_a_workspace_and_run_of_an_odd_name_get_their_turn(database: Database) -> None:
    odd = ["", " ", "ä", "'", "\\", "{", "null", "\U0001f600"]
    for workflow in odd:
        _pend(database, 2, workflow, workflow if len(workflow) % 2 else None)
    expected = {row["id"] for row in everything(database, "SELECT id FROM workflow_runs")}
    with store_of(database) as (store, _):
        assert {claim.run_id for claim in claim_all(store, 1000)} == expected


def test_released_run_is_claimed_before_younger_ones(database: Database) -> None:
    _pend(database, 30, "w1")
    with store_of(database) as (store, _):
        first = claim_all(store, 10)
        store.release(first[:3], reason="test")
        again = claim_all(store, 5, dispatcher_id=uuid4())
    assert [claim.run_id for claim in again[:3]] == [claim.run_id for claim in first[:3]]
    assert [nth_claim(claim.fence) for claim in again] == [2, 2, 2, 1, 1]


def test_names_of_runs_are_read_as_they_are(database: Database) -> None:
    _pend(database, 1, json.dumps({"a": 1}))
    with store_of(database) as (store, _):
        assert len(claim_all(store)) == 1
