"""What counts against rates and limits is what a model in Python counts, for policies and claims made at random."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.policy import POLICY_USE, PRUNE_RATES, SPEND
from tests.support.database.comparing import RolledBack
from tests.support.database.look_model import DEFAULT
from tests.support.database.policies_at_random import SCOPES, Scope
from tests.support.database.rows import add_use
from tests.support.database.run_states import LIVE, WORKFLOWS, write
from tests.support.database.runs_at_random import at_random

_POLICY = text("""
INSERT INTO orcheo_dispatch.policy (workspace_id, workflow_id, max_running, rate_runs, rate_seconds)
VALUES (:workspace, :workflow, 5, CASE WHEN :rated THEN 5 END, CASE WHEN :rated THEN :seconds END)
""")
_USES = text("""
SELECT u.workspace_id, u.workflow_id, u.runs, EXTRACT(epoch FROM u.until - now())::float8 AS left_for
  FROM orcheo_dispatch.rate_use AS u
""")


@pytest.mark.parametrize("seed", range(40))
def test_claims_are_spent_as_the_model_says(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    rated = {scope: random.choice((True, False)) for scope in random.sample(SCOPES, random.randint(0, 5))}
    seconds = random.choice((60, 3600))
    claims = {
        (workspace, workflow): random.randint(1, 9)
        for workspace in ("", "a", "b")
        for workflow in WORKFLOWS
        if random.random() < 0.6
    }
    expected: Counter[Scope] = Counter()
    for (workspace, workflow), runs in claims.items():
        for scope in {("", workflow), (workspace, ""), ("", "")}:
            if rated.get(scope):
                expected[scope] += runs
    parameters = {
        "workspaces": [workspace for workspace, _ in claims],
        "workflows": [workflow for _, workflow in claims],
        "claims": [*claims.values()],
    }
    with rolled_back() as connection:
        for (workspace, workflow), is_rated in rated.items():
            terms = {"workspace": workspace, "workflow": workflow, "rated": is_rated, "seconds": seconds}
            connection.execute(_POLICY, terms)
        for times in (1, 2):
            connection.execute(SPEND, parameters)
            spent = connection.execute(_USES).all()
            found = {(row.workspace_id, row.workflow_id): row.runs for row in spent}
            assert len(found) == len(spent)
            assert found == {scope: runs * times for scope, runs in expected.items()}
            assert all(seconds <= row.left_for <= seconds * 1.01 for row in spent)


def _use(random: Random, connection: Connection) -> dict[Scope, int]:
    """Write uses, some of which count no longer, and return the sum of those that do by scope."""
    counted: dict[Scope, int] = defaultdict(int)
    for workspace, workflow in (*SCOPES, ("a", "w1")):
        for left in (-50, -5, 5, 50):
            if random.random() < 0.5:
                runs = random.randint(1, 9)
                add_use(connection, (workspace, workflow), runs, left=left)
                counted[workspace, workflow] += runs if left > 0 else 0
    return counted


@pytest.mark.parametrize("seed", range(10))
def test_use_of_policies_is_what_the_model_counts(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    states = at_random(random, 60)
    live = [state for state in states if state.entry and state.entry.state in LIVE]

    def pending(workflow: str) -> int:
        return sum(state.workflow == workflow and DEFAULT.pending(state) for state in states)

    def use(workspace: str | None, workflow: str, claims: dict[Scope, int]) -> dict[str, Any]:
        return {
            "running_of_workflow": sum(state.workflow == workflow for state in live),
            "running_of_workspace": sum(state.workspace is not None and state.workspace == workspace for state in live),
            "running_of_all": len(live),
            "claims_of_workflow": claims["", workflow],
            "claims_of_workspace": 0 if workspace is None else claims[workspace, ""],
            "claims_of_all": claims["", ""],
            "pending": pending(workflow),
        }

    with rolled_back() as connection:
        write(connection, states)
        claims = _use(random, connection)
        for workspace in ("a", "b", None):
            for workflow in WORKFLOWS:
                parameters = {"of_workspace": workspace, "of_workflow": workflow}
                found = dict(connection.execute(POLICY_USE, parameters).mappings().one())
                assert found == use(workspace, workflow, claims)


@pytest.mark.parametrize("seed", range(4))
def test_only_uses_that_count_no_longer_are_pruned(rolled_back: RolledBack, seed: int) -> None:
    random = Random(seed)
    with rolled_back() as connection:
        counted = _use(random, connection)
        connection.execute(PRUNE_RATES)
        left: Counter[Scope] = Counter()
        for row in connection.execute(_USES):
            assert row.left_for > 0
            left[row.workspace_id, row.workflow_id] += row.runs
    assert left == Counter({scope: runs for scope, runs in counted.items() if runs})
