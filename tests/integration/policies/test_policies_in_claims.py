"""Claims obey policies: pauses, limits, rates, priorities and queues, in turn and oldest first."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine

from orcheo_dispatch.shared.ledger.model import Claim, Outcome, ProcessKind
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.runs import Ending, NotBegun, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from orcheo_dispatch.shared.settings.policies import LostRuns, Retries, WorkerIsolation
from tests.support.database.databases import Database
from tests.support.database.runs import (
    claim_all,
    execute,
    insert_runs,
    ledger,
    one,
    read_run,
    store_of,
)

ME = Author("ada", Interface.COMMAND)
BY_POLICY = Limits(by_policy=True)
_PENDING = """
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
SELECT %(workflow)s || '/' || n, %(workflow)s, 'v', 'pending', 'webhook', '{}', now(), now(), %(workspace)s
  FROM generate_series(1, %(runs)s) AS n
"""
IN_TURN = pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "oldest first"])


@pytest.fixture
def there(database: Database) -> Iterator[tuple[Store, Engine]]:
    """A store on the test's own database, and its engine."""
    with store_of(database) as both:
        yield both


def pending(database: Database, workflow: str, runs: int, workspace: str | None = "acme") -> None:
    """Insert pending runs of a workflow."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(_PENDING, {"workflow": workflow, "workspace": workspace, "runs": runs})


def claimed(store: Store, room: int = 100, **overrides: Any) -> Counter[str]:
    """Claim, and return how many runs of each workflow were."""
    claims = claim_all(store, room, **{"limits": BY_POLICY, **overrides})
    return Counter(claim.run_id.partition("/")[0] for claim in claims)


@IN_TURN
def test_a_paused_workflow_is_not_claimed_until_it_is_unpaused(
    database: Database, there: tuple[Store, Engine], in_turn: bool
) -> None:
    store, engine = there
    pending(database, "a", 5)
    pending(database, "b", 5)
    Policies(engine).set(Scope(workflow_id="a"), {"paused": True}, ME)
    assert claimed(store, in_turn=in_turn) == {"b": 5}
    Policies(engine).set(Scope(workflow_id="a"), {"paused": None}, ME)
    assert claimed(store, in_turn=in_turn) == {"a": 5}


@IN_TURN
def test_the_most_specific_pause_decides(database: Database, there: tuple[Store, Engine], in_turn: bool) -> None:
    store, engine = there
    pending(database, "a", 2)
    pending(database, "b", 2)
    pending(database, "c", 2, workspace="other")
    pending(database, "d", 2, workspace=None)
    policies = Policies(engine)
    policies.set(ALL, {"paused": True}, ME)
    policies.set(Scope(workspace_id="acme"), {"paused": False}, ME)
    policies.set(Scope(workflow_id="b"), {"paused": True}, ME)
    assert claimed(store, in_turn=in_turn) == {"a": 2}
    policies.clear(ALL, ME)
    assert claimed(store, in_turn=in_turn) == {"c": 2, "d": 2}


@IN_TURN
def test_a_pause_ends_by_itself(database: Database, there: tuple[Store, Engine], in_turn: bool) -> None:
    store, engine = there
    pending(database, "a", 2)
    policies = Policies(engine)
    now = datetime.now(UTC)
    policies.set(ALL, {"paused": True, "paused_until": now + timedelta(hours=1)}, ME)
    assert claimed(store, in_turn=in_turn) == {}
    execute(database, "UPDATE orcheo_dispatch.policy SET paused_until = now() - interval '1 second'")
    assert claimed(store, in_turn=in_turn) == {"a": 2}


@IN_TURN
def test_nothing_is_claimed_during_maintenance_whatever_other_rows_say(
    database: Database, there: tuple[Store, Engine], in_turn: bool
) -> None:
    store, engine = there
    pending(database, "a", 2)
    policies = Policies(engine)
    policies.set(Scope(workflow_id="a"), {"paused": False, "max_running": 10}, ME)
    policies.set(ALL, {"maintenance": True}, ME)
    assert claimed(store, in_turn=in_turn) == {}
    assert store.look(triggers=["webhook"], every_trigger=False).maintenance
    policies.clear(ALL, ME)
    assert claimed(store, in_turn=in_turn) == {"a": 2}


@IN_TURN
@pytest.mark.parametrize(
    ("scope", "most"),
    [(Scope(workflow_id="a"), {"a": 3, "b": 10}), (Scope(workspace_id="acme"), 3), (ALL, 3)],
    ids=["workflow", "workspace", "all"],
)
def test_max_running_holds_for_the_scope_together(
    database: Database, there: tuple[Store, Engine], in_turn: bool, scope: Scope, most: Any
) -> None:
    store, engine = there
    for workflow in ("a", "b"):
        pending(database, workflow, 10)
    Policies(engine).set(scope, {"max_running": 3}, ME)
    # The settings allow more, and the policy is in addition.
    found = claimed(store, in_turn=in_turn, limits=Limits(10, 20, by_policy=True))
    assert (found if isinstance(most, dict) else found.total()) == most
    assert claimed(store, in_turn=in_turn).total() == 0


@IN_TURN
def test_a_limit_of_a_workflow_replaces_that_of_the_settings_in_both_directions(
    database: Database, there: tuple[Store, Engine], in_turn: bool
) -> None:
    store, engine = there
    for workflow in ("a", "b", "c"):
        pending(database, workflow, 10)
    Policies(engine).set(Scope(workflow_id="a"), {"max_running": 7}, ME)
    Policies(engine).set(Scope(workflow_id="b"), {"max_running": 1}, ME)
    assert claimed(store, in_turn=in_turn, limits=Limits(3, by_policy=True)) == {"a": 7, "b": 1, "c": 3}


@IN_TURN
@pytest.mark.parametrize(
    "scope", [Scope(workflow_id="a"), Scope(workspace_id="acme"), ALL], ids=["workflow", "workspace", "all"]
)
def test_a_rate_holds_however_often_is_claimed(
    database: Database, there: tuple[Store, Engine], in_turn: bool, scope: Scope
) -> None:
    store, engine = there
    pending(database, "a", 50)
    Policies(engine).set(scope, {"rate_runs": 7, "rate_seconds": 3600}, ME)
    turns = Turns()
    taken = sum(claimed(store, room=3, in_turn=in_turn, turns=turns).total() for _ in range(6))
    assert taken == 7
    # Runs that ended count as long as the period lasts; afterwards they do not.
    execute(database, "UPDATE orcheo_dispatch.rate_use SET until = now() - interval '1 second'")
    assert claimed(store, in_turn=in_turn).total() == 7
    Policies(engine).prune()
    assert one(database, "SELECT sum(runs) AS runs FROM orcheo_dispatch.rate_use")["runs"] == 7


def test_a_rate_is_never_exceeded_in_any_period(database: Database, there: tuple[Store, Engine]) -> None:
    store, engine = there
    pending(database, "a", 300)
    Policies(engine).set(Scope(workflow_id="a"), {"rate_runs": 20, "rate_seconds": 1}, ME)
    deadline = datetime.now(UTC) + timedelta(seconds=4)
    while datetime.now(UTC) < deadline:
        claimed(store)
    worst = one(
        database,
        "SELECT max(n) AS most FROM (SELECT count(*) OVER (ORDER BY claimed_at"
        " RANGE BETWEEN interval '0.999 s' PRECEDING AND CURRENT ROW) AS n FROM orcheo_dispatch.dispatch) AS w",
    )
    total = one(database, "SELECT count(*) AS n FROM orcheo_dispatch.dispatch")
    assert worst["most"] == 20
    assert total["n"] >= 60


def test_limits_and_rates_hold_exactly_with_several_dispatchers(
    database: Database, there: tuple[Store, Engine]
) -> None:
    _, engine = there
    for workflow in ("a", "b", "c", "d"):
        pending(database, workflow, 200, workspace="acme" if workflow < "c" else "other")
    policies = Policies(engine)
    policies.set(Scope(workflow_id="a"), {"max_running": 11}, ME)
    policies.set(Scope(workspace_id="other"), {"max_running": 13}, ME)
    policies.set(Scope(workflow_id="b"), {"rate_runs": 17, "rate_seconds": 3600}, ME)
    found: list[Counter[str]] = []
    start = threading.Barrier(4)

    def dispatch() -> None:
        with store_of(database, connections=1) as (store, _):
            turns, mine = Turns(), Counter[str]()
            start.wait()
            for _ in range(30):
                mine += claimed(store, room=5, turns=turns)
            found.append(mine)

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = sum(found, Counter())
    assert len(found) == 4
    assert (together["a"], together["b"], together["c"] + together["d"]) == (11, 17, 13)


def test_priority_weighs_the_shares_of_a_turn_and_starves_nobody(
    database: Database, there: tuple[Store, Engine]
) -> None:
    store, engine = there
    for workflow in ("high", "low", "plain"):
        pending(database, workflow, 1000)
    policies = Policies(engine)
    policies.set(Scope(workflow_id="high"), {"priority": 3}, ME)
    policies.set(Scope(workflow_id="low"), {"priority": -5}, ME)
    turns = Turns()
    first = claimed(store, room=100, turns=turns)
    # 8 : 1/32 : 1
    assert first["high"] == 89
    assert first["plain"] == 100 - 89 - first["low"] > 0
    assert first["low"] >= 1
    # The stated bound: with room for all of them, each has a run in each claim.
    for _ in range(5):
        assert set(claimed(store, room=20, turns=turns)) == {"high", "low", "plain"}
    # With less room than workflows, each has its turn after the others.
    turns = Turns()
    assert sum((claimed(store, room=1, turns=turns) for _ in range(3)), Counter()).keys() == {"high", "low", "plain"}


def test_priority_of_a_workspace_weighs_it_against_the_others(database: Database, there: tuple[Store, Engine]) -> None:
    store, engine = there
    pending(database, "a", 500, workspace="acme")
    pending(database, "b", 500, workspace="other")
    Policies(engine).set(Scope(workspace_id="acme"), {"priority": 2}, ME)
    assert claimed(store, room=100) == {"a": 80, "b": 20}


def test_many_paused_workflows_do_not_hide_one_that_is_not(database: Database, there: tuple[Store, Engine]) -> None:
    store, _ = there
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload,"
            " created_at, updated_at, workspace_id)"
            " SELECT 'p' || n, 'p' || n, 'v', 'pending', 'webhook', '{}', now(), now(), 'acme'"
            " FROM generate_series(1, 700) AS n"
        )
        connection.execute(
            "INSERT INTO orcheo_dispatch.policy (workflow_id, paused)"
            " SELECT 'p' || n, true FROM generate_series(1, 700) AS n"
        )
    pending(database, "z", 3)
    turns = Turns()
    claims = 0
    while not (found := claimed(store, turns=turns)):
        claims += 1
        assert turns.more, "the rest of the rotation is left for the next tick"
    assert found == {"z": 3}
    assert claims <= 700 // 64 + 1


@IN_TURN
def test_a_queue_without_a_live_worker_is_not_claimed_for(
    database: Database, there: tuple[Store, Engine], in_turn: bool
) -> None:
    store, engine = there
    pending(database, "a", 3)
    pending(database, "b", 3)
    Policies(engine).set(Scope(workflow_id="a"), {"queue": "gpu"}, ME)
    assert claimed(store, in_turn=in_turn) == {"b": 3}
    Process(ProcessKind.WORKER, queues=("default", "gpu")).seen(engine)
    claims = claim_all(store, in_turn=in_turn)
    assert {claim.queue for claim in claims} == {"gpu"}
    assert len(claims) == 3
    assert ledger(database, claims[0].run_id)["queue"] == "gpu"


@IN_TURN
def test_a_full_default_queue_does_not_keep_runs_of_named_queues_waiting(
    database: Database, there: tuple[Store, Engine], in_turn: bool
) -> None:
    store, engine = there
    pending(database, "a", 5)
    pending(database, "b", 5)
    Policies(engine).set(Scope(workflow_id="b"), {"queue": "gpu"}, ME)
    Process(ProcessKind.WORKER, queues=("gpu",)).seen(engine)
    assert claimed(store, in_turn=in_turn, default_room=0, max_queued=3) == {"b": 3}
    assert claimed(store, in_turn=in_turn, default_room=0, max_queued=3) == {}
    assert store.look(triggers=["webhook"], every_trigger=False).queued == 0
    assert store.queued() == 0


def test_a_run_that_was_paused_after_its_claim_stays_pending(database: Database, there: tuple[Store, Engine]) -> None:
    store, engine = there
    first, second = insert_runs(database, 2)
    claims = {claim.run_id: claim for claim in claim_all(store)}
    workflow = ledger(database, first)["workflow_id"]
    Policies(engine).set(Scope(workflow_id=workflow), {"paused": True}, ME)
    answer = store.begin(claims[first], worker_id=uuid4(), lease=30)
    assert answer == NotBegun(claims[first], "paused")
    assert read_run(database, first)["status"] == "pending"
    row = ledger(database, first)
    assert (row["state"], row["outcome"], row["slot"], row["attempts"]) == ("settled", "released", "held", 0)
    Policies(engine).clear(Scope(workflow_id=workflow), ME)
    assert isinstance(store.begin(claims[second], worker_id=uuid4(), lease=30), Run)
    (again,) = claim_all(store)
    assert again.run_id == first
    assert again.fence > claims[first].fence


def test_no_claimed_run_begins_during_maintenance(database: Database, there: tuple[Store, Engine]) -> None:
    store, engine = there
    insert_runs(database)
    (claim,) = claim_all(store)
    Policies(engine).set(ALL, {"maintenance": True}, ME)
    assert store.begin(claim, worker_id=uuid4(), lease=30) == NotBegun(claim, "maintenance")


@pytest.mark.parametrize("hold", [{"paused": True}, {"maintenance": True}], ids=["paused", "maintenance"])
@pytest.mark.parametrize(
    ("change", "outcome", "slot", "reason"),
    [
        ("UPDATE workflow_runs SET status = 'cancelled'", "cancelled", "due", "run is cancelled"),
        ("UPDATE workflow_runs SET status = 'succeeded'", "skipped", "due", "run is succeeded"),
        ("UPDATE workflow_runs SET status = 'running'", "skipped", "held", "run is running"),
        ("UPDATE workflows SET is_archived = true", "cancelled", "due", "workflow_archived"),
        ("DELETE FROM workflow_runs", "skipped", "due", "run is gone"),
    ],
    ids=["cancelled", "succeeded", "running", "archived", "deleted"],
)
def test_only_a_run_that_could_begin_is_held_back(
    database: Database,
    there: tuple[Store, Engine],
    hold: dict[str, bool],
    change: str,
    outcome: str,
    slot: str,
    reason: str,
) -> None:
    """Any other has ended, or must, whatever operators decided meanwhile."""
    store, engine = there
    insert_runs(database)
    (claim,) = claim_all(store)
    Policies(engine).set(ALL, hold, ME)
    execute(database, change)
    answer = store.begin(claim, worker_id=uuid4(), lease=30)
    assert isinstance(answer, NotBegun)
    assert answer.reason == reason
    row = ledger(database, claim.run_id)
    assert (row["state"], row["outcome"], row["slot"], row["reason"]) == ("settled", outcome, slot, reason)


def test_a_run_begins_with_the_rules_that_operators_set(database: Database, there: tuple[Store, Engine]) -> None:
    store, engine = there
    insert_runs(database)
    (claim,) = claim_all(store)
    workflow = ledger(database, claim.run_id)["workflow_id"]
    policies = Policies(engine)
    policies.set(Scope(workflow_id=workflow), {"timeout_seconds": 12.5, "isolation": "process"}, ME)
    policies.set(ALL, {"lost_runs": "fail", "retries": "start", "timeout_seconds": 99}, ME)
    run = store.begin(claim, worker_id=uuid4(), lease=30)
    assert isinstance(run, Run)
    rules = run.rules
    assert (rules.timeout, rules.isolation, rules.lost_runs, rules.retries) == (
        12.5,
        WorkerIsolation.PROCESS,
        LostRuns.FAIL,
        Retries.START,
    )


@pytest.mark.parametrize(
    ("setting", "policy", "outcome"),
    [
        (LostRuns.RESUME, "fail", Outcome.LOST),
        (LostRuns.FAIL, "resume", Outcome.REQUEUED),
        (LostRuns.HOLD, "requeue", Outcome.REQUEUED),
        (LostRuns.FAIL, "hold", None),
        (LostRuns.FAIL, None, Outcome.LOST),
    ],
)
def test_a_lost_run_ends_by_the_rule_of_its_workflow(
    database: Database, there: tuple[Store, Engine], setting: LostRuns, policy: str | None, outcome: Outcome | None
) -> None:
    store, engine = there
    insert_runs(database)
    (claim,) = claim_all(store)
    assert isinstance(store.begin(claim, worker_id=uuid4(), lease=30), Run)
    workflow = ledger(database, claim.run_id)["workflow_id"]
    if policy:
        Policies(engine).set(Scope(workflow_id=workflow), {"lost_runs": policy}, ME)
    execute(database, "UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'")
    reaped = store.reap(setting, max_attempts=3, lease=0, batch=10)
    assert [each.outcome for each in reaped] == ([] if outcome is None else [outcome])


def test_a_failed_run_is_retried_from_the_start_if_its_policy_says_so(
    database: Database, there: tuple[Store, Engine]
) -> None:
    store, engine = there
    insert_runs(database)
    (claim,) = claim_all(store)
    run = store.begin(claim, worker_id=uuid4(), lease=30)
    assert isinstance(run, Run)
    Policies(engine).set(Scope(workflow_id=run.workflow_id), {"retries": "start"}, ME)
    assert store.settle(claim, Ending.failed("x", reason="x"))
    execute(
        database,
        "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)"
        " VALUES (%s, '', '1', '{}', '{}')",
        claim.run_id,
    )
    execute(
        database,
        "INSERT INTO orcheo_dispatch.retry (run_id, retries, next_at) VALUES (%s, 1, now() - interval '1 s')",
        claim.run_id,
    )
    assert store.retry(from_start=False, batch=10) == {claim.run_id: 1}
    assert one(database, "SELECT start_over_from FROM orcheo_dispatch.retry")["start_over_from"] == "1"


def test_a_claim_that_postgres_refuses_for_one_run_spends_the_rate_of_the_others(
    database: Database, there: tuple[Store, Engine]
) -> None:
    store, engine = there
    pending(database, "a", 5)
    execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.run_id = 'a/2' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER refuse BEFORE INSERT ON orcheo_dispatch.dispatch FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    Policies(engine).set(Scope(workflow_id="a"), {"rate_runs": 4, "rate_seconds": 3600}, ME)
    assert claimed(store).total() == 3
    assert claimed(store).total() == 1
    assert claimed(store).total() == 0


def test_claims_are_equal_whatever_their_queue() -> None:
    assert Claim("r", 1, "gpu") == Claim("r", 1)
    assert len({Claim("r", 1, "gpu"), Claim("r", 1)}) == 1
