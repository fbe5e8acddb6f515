"""The statements that claim take what a model in Python takes, for hundreds of tables made at random."""

from __future__ import annotations

import json
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.claim import CLAIM
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_OLDEST_FIRST
from tests.support.database.claim_model import LIVE, Case, Policy, Row, Taken, Use, claim, claim_oldest
from tests.support.database.databases import Database
from tests.support.database.runs import store_of

_CASES = 150
_WORKSPACES = (None, "", "a", "b", "c")
_WORKFLOWS = ("w1", "w2", "w3")
_SCOPES = (("", ""), *((each, "") for each in "abc"), *(("", each) for each in _WORKFLOWS))
_NO_SCOPE = ("a", "w1")
"""Counts against no rate: a policy is of a workspace or of a workflow."""
_RUN = text("""
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
VALUES (:id, :workflow, 'v', :status, :label, CAST(:payload AS jsonb), now() + make_interval(secs => :age), now(),
        :workspace)
""")
_ENTRY = text("""
INSERT INTO orcheo_dispatch.dispatch (run_id, workflow_id, workspace_id, triggered_by, state, fence, slot, created_at,
                                      claimed_at, begun_at, settled_at, outcome, lease_expires_at, dispatcher_id,
                                      worker_id, queue)
VALUES (:id, :workflow, :workspace, :label, :state, 1, 'none', now(), now(),
        CASE WHEN :state IN ('running', 'settled') THEN now() END, CASE WHEN :state = 'settled' THEN now() END,
        CASE WHEN :state = 'settled' THEN 'released' END, CASE WHEN :state <> 'settled' THEN now() END,
        :process, :process, :queue)
""")
_POLICY = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, maintenance, paused, paused_until, queue, priority,
                                    max_running, rate_runs, rate_seconds)
VALUES (:workspace, :workflow, :maintenance, :paused,
        CASE WHEN :paused THEN now() + CASE WHEN :over THEN interval '-1 s' ELSE interval '1 h' END END, :queue,
        :priority, :max_running, :rate_runs, CASE WHEN :rate_runs > 0 THEN 60 END)
""")
_USE = text("""
INSERT INTO orcheo_dispatch.rate_use (workspace_id, workflow_id, runs, until)
VALUES (:workspace, :workflow, :runs, now() + CASE WHEN :over THEN interval '-1 s' ELSE interval '1 h' END)
""")
_CLAIMED = text("""
SELECT d.run_id, d.queue, d.slot FROM orcheo_dispatch.dispatch AS d WHERE d.dispatcher_id = :dispatcher_id
""")
_DISPATCHER = UUID(int=7)


@pytest.mark.parametrize("seed", range(4))
def test_claim_takes_what_the_model_takes(database: Database, seed: int) -> None:
    random = Random(seed)
    with store_of(database) as (_, engine), engine.connect() as connection:
        for _ in range(_CASES):
            case = _made(random)
            with connection.begin() as transaction:
                _enter(connection, case)
                expected = claim(case)
                assert _executed(connection, case, choose=True) == expected, case
                assert _claimed(connection) == {}
                assert _executed(connection, case, choose=False) == expected, case
                claims = [(run_id, each.queue) for each in expected for run_id in each.run_ids]
                assert _claimed(connection) == _entries(case, claims), case
                transaction.rollback()


@pytest.mark.parametrize("seed", range(4, 8))
def test_claim_oldest_first_takes_what_the_model_takes(database: Database, seed: int) -> None:
    random = Random(seed)
    with store_of(database) as (_, engine), engine.connect() as connection:
        for _ in range(_CASES):
            case = _made(random)
            with connection.begin() as transaction:
                _enter(connection, case)
                expected = claim_oldest(case)
                run_ids, queues = [run_id for run_id, _ in expected.claims], [queue for _, queue in expected.claims]
                (chosen,) = connection.execute(CLAIM_OLDEST_FIRST, _parameters(case, choose=True))
                assert (chosen.found, chosen.within_limits) == (expected.found, len(run_ids)), case
                assert (chosen.chosen_ids, chosen.run_ids, chosen.held_ids) == (run_ids, [], []), case
                assert _claimed(connection) == {}
                (claimed,) = connection.execute(CLAIM_OLDEST_FIRST, _parameters(case, choose=False))
                assert (claimed.found, claimed.within_limits) == (expected.found, len(run_ids)), case
                assert (claimed.run_ids, claimed.queues) == (run_ids, queues), case
                assert (claimed.chosen_ids, claimed.held_ids) == ([], []), case
                rows = {row.id: row for row in case.rows}
                assert [*zip(claimed.workspaces, claimed.workflows, strict=True)] == [
                    rows[each].key for each in run_ids
                ]
                assert _claimed(connection) == _entries(case, expected.claims), case
                transaction.rollback()


def _claimed(connection: Connection) -> dict[str, tuple[str | None, str]]:
    """Return queue and slot of each run that this dispatcher has claimed."""
    rows = connection.execute(_CLAIMED, {"dispatcher_id": _DISPATCHER})
    return {row.run_id: (row.queue, row.slot) for row in rows}


def _entries(case: Case, claims: list[tuple[str, str | None]]) -> dict[str, tuple[str | None, str]]:
    """Return what the ledger says of each run that is claimed; a run that was claimed before keeps its slot."""
    rows = {row.id: row for row in case.rows}
    return {
        run_id: (queue, "none" if rows[run_id].state or rows[run_id].workspace is None else "held")
        for run_id, queue in claims
    }


def _executed(connection: Connection, case: Case, *, choose: bool) -> list[Taken]:
    rows = connection.execute(CLAIM, _parameters(case, choose=choose)).all()
    assert all(row.found == len(row.chosen_ids if choose else row.run_ids) for row in rows), case
    assert not any(row.run_ids if choose else row.chosen_ids for row in rows), case
    return [
        Taken(row.workspace, row.workflow, row.queue, list(row.chosen_ids if choose else row.run_ids), row.has_more)
        for row in rows
    ]


def _parameters(case: Case, *, choose: bool) -> dict[str, Any]:
    given = case.given
    return {
        "room": case.room,
        "default_room": case.default_room,
        "max_queued": case.max_queued,
        "consumed": list(case.consumed),
        "per_workflow": case.per_workflow,
        "per_workspace": case.per_workspace,
        "every_trigger": case.every_trigger,
        "triggers": ["webhook"],
        "skipped": list(case.skipped),
        "keys": case.keys,
        "after_workspace": case.after_workspace,
        "workspaces_begun": list(case.begun),
        "after_workflows": list(case.begun.values()),
        "workspaces": None if given is None else [workspace for workspace, _ in given],
        "workflows": None if given is None else [workflow for _, workflow in given],
        "lease": 60,
        "dispatcher_id": str(_DISPATCHER),
        "choose": choose,
    }


def _made(random: Random) -> Case:
    """Return a case in which each part is there now and then."""
    workspaces = random.sample(_WORKSPACES, random.randint(1, 4))
    ended, entered = random.choice((0.0, 0.1, 0.6)), random.choice((0.0, 0.2, 0.6))
    rows = [_row(random, n, workspaces, ended, entered) for n in range(random.randint(1, 30))]
    keys = sorted({row.key for row in rows})
    names = sorted({workspace for workspace, _ in keys})
    case = Case(rows, room=random.choice((1, 2, 3, 5, 8, 20)), max_queued=random.choice((1, 2, 20)))
    case.default_room = random.choice((0, 1, 2, case.room, case.room))
    case.consumed = tuple(random.sample(("gpu", "io"), random.randint(0, 2)))
    case.per_workflow = random.choice((None, None, 1, 2, 4))
    case.per_workspace = random.choice((None, None, 1, 3, 6))
    case.every_trigger = random.random() < 0.3
    case.skipped = tuple(row.id for row in rows if random.random() < 0.05)
    case.keys = random.choice((64, 64, 1, 2, 3, 5))
    case.after_workspace = random.choice(("", "a", "b", "c"))
    case.begun = {name: random.choice(("", *_WORKFLOWS)) for name in names if random.random() < 0.4}
    if random.random() < 0.3:
        case.given = random.sample(keys, random.randint(1, len(keys)))
    if random.random() < 0.7:
        case.policies = _policies(random)
        case.uses = [
            Use(*scope, random.randint(1, 3), over)
            for scope in (*_SCOPES, _NO_SCOPE)
            for over in (False, True)
            if random.random() < (0.7 if scope in (*case.policies, _NO_SCOPE) else 0.2)
        ]
    return case


def _row(random: Random, n: int, workspaces: list[str | None], ended: float, entered: float) -> Row:
    """`ended` and `entered` are the shares of runs that are not pending, and of those with a row in the ledger."""
    state = random.choice(("settled", *LIVE)) if random.random() < entered else None
    return Row(
        id=f"r{n:02}",
        workflow=random.choice(_WORKFLOWS),
        workspace=random.choice(workspaces),
        status="running" if state == "running" else "succeeded" if random.random() < ended else "pending",
        label=random.choice(("webhook",) * 4 + ("other",)),
        chatkit=random.random() < 0.1,
        state=state,
        queue=random.choice((None, "gpu", "io")) if state in LIVE else None,
    )


def _policies(random: Random) -> dict[tuple[str, str], Policy]:
    found = {}
    for scope in random.sample(_SCOPES, random.randint(1, 5)):
        paused = random.choice((None,) * 6 + (True, True, False))
        found[scope] = Policy(
            maintenance=random.choice((None,) * 4 + (False,) * 4 + (True,)) if scope == ("", "") else None,
            paused=paused,
            pause_over=bool(paused) and random.random() < 0.5,
            queue=random.choice((None, None, "default", "gpu", "io")),
            priority=random.choice((None, -2, 1, 3)) if scope != ("", "") else None,
            max_running=random.choice((None, None, 1, 3, 8)),
            rate_runs=random.choice((None, 1, 3, 5, 8)),
        )
    return found


def _enter(connection: Connection, case: Case) -> None:
    for n, row in enumerate(case.rows):
        payload = {"input_payload": {"source": "chatkit"}} if row.chatkit else {}
        # Labels of Orcheo's own triggers are never ChatKit's.
        label = "chat" if row.chatkit and row.label == "webhook" else row.label
        values = {"id": row.id, "workflow": row.workflow, "workspace": row.workspace, "label": label}
        connection.execute(_RUN, {**values, "status": row.status, "payload": json.dumps(payload), "age": n})
        if row.state is not None:
            connection.execute(_ENTRY, {**values, "state": row.state, "process": UUID(int=1), "queue": row.queue})
    for (workspace, workflow), policy in case.policies.items():
        connection.execute(
            _POLICY,
            {
                "workspace": workspace,
                "workflow": workflow,
                "maintenance": policy.maintenance,
                "paused": policy.paused,
                "over": policy.pause_over,
                "queue": policy.queue,
                "priority": policy.priority,
                "max_running": policy.max_running,
                "rate_runs": policy.rate_runs,
            },
        )
    for use in case.uses:
        connection.execute(
            _USE, {"workspace": use.workspace, "workflow": use.workflow, "runs": use.runs, "over": use.over}
        )
