"""What operators read of policies, operations and runs held back is what models in Python say, at random."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from random import Random
from typing import Any

import pytest
from sqlalchemy import text

from orcheo_dispatch.shared.ledger.overview import IN_FORCE
from orcheo_dispatch.shared.ledger.statements.policy import (
    FIND_POLICY_WORKFLOW,
    HELD_BACK,
    OPERATIONS,
    PENDING_WORKFLOWS,
    POLICIES,
    RECORD_OPERATION,
    WORKSPACE_IN_USE,
    WORKSPACE_OF_RUNS,
)
from tests.support.database.comparing import RolledBack
from tests.support.database.look_model import DEFAULT
from tests.support.database.policies_at_random import AUTHOR, Policy, decide, insert
from tests.support.database.rows import add_workflow
from tests.support.database.run_states import State, write
from tests.support.database.runs_at_random import at_random

_VIEW = text("SELECT * FROM orcheo_dispatch.held_back_runs")


@pytest.mark.parametrize("seed", range(30))
def test_policies_are_read_as_the_model_reads_them(rolled_back: RolledBack, seed: int) -> None:
    with rolled_back() as connection:
        policies = decide(Random(seed), connection)
        ordered = sorted(policies, key=lambda scope: (scope[1] != "", scope[0] != "", *scope))

        def found(workspace: str | None, workflow: str | None, limit: int = 100) -> list[tuple[str, str]]:
            parameters = {"workspace_id": workspace, "workflow_id": workflow, "limit": limit}
            rows = connection.execute(POLICIES, parameters).all()
            assert all(row.why == policies[row.workspace_id, row.workflow_id].why for row in rows)
            return [(row.workspace_id, row.workflow_id) for row in rows]

        assert found(None, None) == ordered
        assert found(None, None, limit=2) == ordered[:2]
        for workspace in ("", "a", "b", "c"):
            for workflow in ("", "w1", "w2", "w3"):
                concerning = {("", ""), (workspace, ""), ("", workflow)}
                assert found(workspace, workflow) == [scope for scope in ordered if scope in concerning]
        in_force = connection.execute(IN_FORCE, {"limit": 100}).all()
        kinds = ("all", "workspace", "workflow")
        saying = sorted(
            (each for each in policies.values() if each.decides),
            key=lambda each: (kinds.index(each.kind), each.ago, each.workspace, each.workflow),
        )
        assert [(row.scope, row.why) for row in in_force] == [(each.kind, each.why) for each in saying]


@pytest.mark.parametrize("seed", range(20))
def test_runs_that_are_held_back_are_listed_with_the_policy_that_holds_them(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, 60)
    with rolled_back() as connection:
        write(connection, states)
        policies = decide(random, connection)
        held = [dict(row) for row in connection.execute(_VIEW).mappings()]
        held.sort(key=lambda row: (row["created_at"], row["run_id"]))
        for row in held:
            scopes = {"all": ("", ""), "workspace": (row["workspace_id"], ""), "workflow": ("", row["workflow_id"])}
            policy = policies[scopes[row["scope"]]] if row["scope"] else None
            row["age"] = row.pop("age_seconds")
            row |= {"by": policy and AUTHOR, "why": policy and policy.why}
        some = [*random.sample([state.id for state in states], 20), "no run"]
        for run_ids, limit in (([], 1000), ([], 3), (some, 1000), (some, 2), (["no run"], 10)):
            rows = connection.execute(HELD_BACK, {"run_ids": run_ids, "limit": limit}).mappings()
            assert [dict(row) for row in rows] == [row for row in held if not run_ids or row["run_id"] in run_ids][
                :limit
            ]


@pytest.mark.parametrize("seed", range(10))
def test_workflows_with_pending_runs_are_those_of_the_model(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, random.choice((2, 5, 60)))
    with rolled_back() as connection:
        write(connection, states)
        rows = [tuple(row) for row in connection.execute(PENDING_WORKFLOWS, {"limit": 100})]
    pending = sorted(filter(DEFAULT.pending, states), key=lambda each: each.workflow)
    expected = [_pending(workflow, [*runs]) for workflow, runs in groupby(pending, lambda each: each.workflow)]
    expected.sort(key=lambda each: (-each[2], each[0]))
    assert rows == expected


def _pending(workflow: str, runs: list[State]) -> tuple[Any, ...]:
    def is_claimed(run: State) -> bool:
        return run.entry is not None and run.entry.state in ("claimed", "published")

    first = min(runs, key=lambda each: (is_claimed(each), -each.created, each.id))
    workspace = min((each.workspace for each in runs if each.workspace is not None), default=None)
    return workflow, workspace, len(runs), max(each.created for each in runs), first.id


@pytest.mark.parametrize("seed", range(10))
def test_workflow_is_found_by_the_beginning_of_its_id(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    names = ("w", "w1", "w12", "w123", "w1%", "w2", "x", "_1")
    workflows = {*random.sample(names, 4)}
    decided = {*random.sample(names, 4)}
    with rolled_back() as connection:
        for each in workflows:
            add_workflow(connection, each)
        insert(connection, [Policy("a", ""), *(Policy("", each) for each in decided)])
        for given in (*names, "", "%", "nothing"):
            matching = [each for each in workflows | decided if each.startswith(given)]
            expected = sorted(((each, each == given) for each in matching), key=lambda each: (not each[1], each[0]))
            found = [tuple(row) for row in connection.execute(FIND_POLICY_WORKFLOW, {"given": given})]
            assert found == expected[:4], given


@pytest.mark.parametrize("seed", range(20))
def test_use_of_a_workspace_is_what_the_model_finds(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = [state for state in at_random(random, random.choice((0, 1, 2, 3, 8))) if state.status is not None]
    with rolled_back() as connection:
        write(connection, states)
        policies = decide(random, connection)
        for workspace in ("a", "b", "c"):
            used = (workspace, "") in policies or any(state.workspace == workspace for state in states)
            assert connection.scalar(WORKSPACE_IN_USE, {"of_workspace": workspace}) is used
        for workflow in ("w1", "w2", "w3"):
            workspaces = {state.workspace for state in states if state.workflow == workflow} or {None}
            assert connection.scalar(WORKSPACE_OF_RUNS, {"of_workflow": workflow}) in workspaces


def test_operations_are_listed_from_the_newest_or_from_a_number(rolled_back: RolledBack) -> None:
    terms: dict[str, Any] = dict.fromkeys(("workspace_id", "workflow_id", "why"))
    terms |= {"by": "me", "interface": "command", "action": "pause", "changed": 1, "refused": 0}
    terms |= {"run_ids": [], "details": "{}"}
    with rolled_back() as connection:
        ids = [connection.scalar(RECORD_OPERATION, terms) for _ in range(5)]

        def listed(before: int | None, limit: int = 100) -> list[int]:
            return [row.id for row in connection.execute(OPERATIONS, {"before": before, "limit": limit})]

        assert listed(None) == ids[::-1]
        assert listed(None, limit=2) == ids[:2:-1]
        assert listed(ids[2]) == ids[1::-1]
        assert listed(ids[0]) == []
    assert Counter(ids).most_common(1)[0][1] == 1
