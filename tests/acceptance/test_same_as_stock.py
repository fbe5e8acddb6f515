"""A run leaves the same rows behind as with Orcheo's stock worker.

What differs on purpose: errors show no passwords of URLs (below), a run writes one checkpoint instead of one a step,
and a run whose workflow was archived has `run_started` in its audit log, since it begins before that is seen.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ops.real.orcheo_api import OrcheoApi
from tests.databases import Database
from tests.orcheo_stack import database_of, ended, stack_beside, start_afresh, upload
from tests.processes import Process, until
from tests.runs import everything, one

STOCK = ["-m", "celery", "-A", "orcheo_backend.worker.celery_app", "worker", "--pool=solo", "--loglevel=INFO"]
INPUTS: dict[str, dict[str, Any]] = {
    "greet": {"name": "Ada \u00e9\u4e2d\U0001f600 {{not.a.template}}"},
    "branches": {
        "name": "x" * 100_000,
        "count": 3,
        "items": [1, -2.5, 1.5e-7, 2**60, True, None, "", {"a": []}],
        "nested": {"b": {"c": [[], {}, [None]]}, "a": "2026-11-23"},
    },
    "fail": {"name": "Bob\nat postgresql://ada:hunter2@db/x"},
}
# How a zone is written is part of what must be the same; PostgreSQL drops zeros at the end of a fraction.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\.\d+")
# LangGraph gives each execution of a subgraph an id of its own.
_TASK = re.compile(r"(?<=inner:)[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a run has left in the tables that the API reads, without ids and times."""

    run: dict[str, Any]
    history: dict[str, Any]
    steps: list[dict[str, Any]]


@pytest.fixture(scope="module")
def traces(orcheo: OrcheoApi) -> dict[str, tuple[Trace, Trace]]:
    """Each workflow with the trace of the stock worker and ours: same API, same database, one after the other."""
    start_afresh(orcheo)
    stack = stack_beside(orcheo)
    # Without a dispatcher ours takes nothing, and need not wait until the other has ended.
    with stack.command("worker") as ours:
        with Process(STOCK, stack.environment) as stock:
            workflows = upload(orcheo, **{name: name for name in INPUTS})
            stock.saw("ready.")
            before = _play(orcheo, workflows)
        ours.saw("worker_started")
        with stack.running("dispatcher"):
            after = _play(orcheo, workflows)
    return {name: (before[name], after[name]) for name in INPUTS}


@pytest.mark.parametrize("workflow", INPUTS)
def test_run_is_the_same_as_with_the_stock_worker(traces: dict[str, tuple[Trace, Trace]], workflow: str) -> None:
    stock, ours = traces[workflow]
    assert ours.run == _without_passwords(stock.run)


@pytest.mark.parametrize("workflow", INPUTS)
def test_history_is_the_same_as_with_the_stock_worker(traces: dict[str, tuple[Trace, Trace]], workflow: str) -> None:
    stock, ours = traces[workflow]
    assert ours.history == _without_passwords(stock.history)
    assert ours.steps == _without_passwords(stock.steps)
    assert len(ours.steps) >= 2


def _play(orcheo: OrcheoApi, workflows: dict[str, str]) -> dict[str, Trace]:
    """Fire each workflow and return its trace."""
    database = database_of(orcheo)
    runs = {name: orcheo.fire_webhook(workflows[name], inputs) for name, inputs in INPUTS.items()}
    for run in runs.values():
        ended(orcheo, run)
        # The stock worker ends the run first and its history after.
        until(partial(_is_closed, orcheo, run["id"]), what="the history is closed")
    return {name: _trace(database, run["id"]) for name, run in runs.items()}


def _is_closed(orcheo: OrcheoApi, run_id: str) -> bool:
    return bool(orcheo.history(run_id)["status"] != "running")


def _trace(database: Database, run_id: str) -> Trace:
    run = one(database, "SELECT to_jsonb(r) AS row FROM workflow_runs AS r WHERE id = %s", run_id)
    history = one(database, "SELECT to_jsonb(h) AS row FROM execution_history AS h WHERE execution_id = %s", run_id)
    steps = everything(
        database,
        "SELECT to_jsonb(s) AS row FROM execution_history_steps AS s WHERE execution_id = %s ORDER BY step_index",
        run_id,
    )
    row, record, *updates = (_masked(found["row"], run_id) for found in (run, history, *steps))
    return Trace(row, record, updates)


def _masked(row: dict[str, Any], run_id: str) -> dict[str, Any]:
    text = _TIME.sub("<time>", json.dumps(row).replace(run_id, "<id>"))
    masked: dict[str, Any] = json.loads(_TASK.sub("<id>", text))
    return masked


def _without_passwords(row: Any) -> Any:
    """Return a row of the stock worker with its errors as ours writes them."""
    if isinstance(row, list):
        return [_without_passwords(each) for each in row]
    if isinstance(row, dict):
        return {
            key: each.replace("ada:hunter2@", "ada:***@") if key == "error" and each else _without_passwords(each)
            for key, each in row.items()
        }
    return row
