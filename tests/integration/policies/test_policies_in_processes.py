"""Policies in dispatchers and workers that run: a flood is paused, rules reach the runs, maintenance ends nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orcheo_dispatch.shared.database.connections import open_engine
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.policies import ALL, Policies, Scope
from tests.support.database.databases import Database
from tests.support.database.runs import (
    WORKFLOW_ID,
    WORKSPACE_ID,
    all_ended,
    insert_runs,
    ledger,
    one,
    read_run,
    settings_for,
)
from tests.support.processes.processes import Stack, until

ME = Author("ada", Interface.COMMAND)
_LIVE = "SELECT count(*) AS n FROM orcheo_dispatch.dispatch WHERE state IN ('claimed', 'published', 'running')"
_POLLS = "SELECT seen_at FROM orcheo_dispatch.process WHERE kind = 'dispatcher'"


@pytest.fixture
def policies(database: Database) -> Iterator[Policies]:
    """Policies of the test's own database."""
    with open_engine(settings_for(database), role="test") as engine:
        yield Policies(engine)


def _count(database: Database, query: str) -> int:
    return int(one(database, query)["n"])


@pytest.mark.parametrize("scope", [Scope(workflow_id=WORKFLOW_ID), Scope(workspace_id=WORKSPACE_ID), ALL], ids=str)
def test_a_flood_that_is_paused_stops_although_its_runs_wait_in_redis(
    database: Database, stack: Stack, policies: Policies, scope: Scope
) -> None:
    insert_runs(database, 400, inputs={"do": "wait", "seconds": 0.1})
    with (
        stack.running("dispatcher") as dispatcher,
        stack.running("worker", ORCHEO_WORKER_CONCURRENCY="4"),
    ):
        until(lambda: len(stack.noted("ended")) >= 8, what="eight runs")
        policies.set(scope, {"paused": True}, ME)
        until(lambda: _count(database, _LIVE) == 0, what="nothing claimed and nothing running")
        begun = len(stack.noted("begun"))
        assert begun < 300
        polled = one(database, _POLLS)["seen_at"]
        until(lambda: one(database, _POLLS)["seen_at"] > polled, what="another poll")
        assert len(stack.noted("begun")) == begun == len(stack.noted("ended"))
        policies.clear(scope, ME)
        until(lambda: len(stack.noted("begun")) > begun, what="the next run")
    assert "Traceback" not in dispatcher.log


def test_maintenance_lets_runs_end_and_begins_none(database: Database, stack: Stack, policies: Policies) -> None:
    first = insert_runs(database, 2, inputs={"do": "wait", "seconds": 2})
    with stack.running("dispatcher") as dispatcher, stack.running("worker"):
        until(lambda: len(stack.noted("begun")) == 2, what="two runs")
        policies.set(ALL, {"maintenance": True}, ME)
        dispatcher.saw("maintenance_began")
        insert_runs(database, 3)
        until(lambda: {read_run(database, run)["status"] for run in first} == {"succeeded"}, what="their ends")
        assert len(stack.noted("begun")) == 2
        policies.clear(ALL, ME)
        dispatcher.saw("maintenance_ended")
        until(lambda: all_ended(database), what="the others")


def test_a_run_is_stopped_after_the_timeout_of_its_policy(database: Database, stack: Stack, policies: Policies) -> None:
    (run_id,) = insert_runs(database, inputs={"do": "wait", "seconds": 3600})
    policies.set(Scope(workspace_id=WORKSPACE_ID), {"timeout_seconds": 0.5}, ME)
    with stack.running("dispatcher"), stack.running("worker"):
        until(lambda: all_ended(database), what="its end")
    assert ledger(database, run_id)["outcome"] == "timed_out"
    assert read_run(database, run_id)["payload"]["error"] == "Run timed out after 0.5 s."


@pytest.mark.parametrize(("setting", "policy", "alone"), [("adaptive", "process", True), ("process", "shared", False)])
def test_runs_have_processes_of_their_own_if_their_policy_says_so(
    database: Database, stack: Stack, policies: Policies, setting: str, policy: str, alone: bool
) -> None:
    """A run that exits ends its own process at most; what was beside it in a shared one is tried again."""
    policies.set(Scope(workflow_id=WORKFLOW_ID), {"isolation": policy}, ME)
    runs = insert_runs(database, 6, inputs={"do": "pid"})
    with stack.running("dispatcher"), stack.running("worker", ORCHEO_WORKER_ISOLATION=setting):
        until(lambda: all_ended(database), what="all runs")
    pids = {read_run(database, run)["payload"]["output_payload"]["final_state"]["pid"] for run in runs}
    assert (len(pids) == len(runs)) is alone
