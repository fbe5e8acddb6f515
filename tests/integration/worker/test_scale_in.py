"""One of two workers leaves while runs arrive, as an autoscaler lets it: every run succeeds, and is settled once."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_ended, everything, insert_runs
from tests.support.processes.processes import Stack, until

_SETTLED = """
SELECT r.id, r.status, d.state, d.outcome, d.slot, d.attempts,
       (SELECT count(*) FROM jsonb_array_elements(r.payload -> 'audit_log') AS a
         WHERE a ->> 'action' = 'run_succeeded') AS succeeded,
       (SELECT count(*) FROM jsonb_array_elements(r.payload -> 'audit_log') AS a
         WHERE a ->> 'action' = 'run_requeued') AS requeued
  FROM workflow_runs AS r JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
"""
_OF_WORKERS = """
SELECT d.worker_id, count(*) AS runs FROM orcheo_dispatch.dispatch AS d WHERE d.state = 'running' GROUP BY d.worker_id
"""


def _wanted(database: Database) -> int:
    (row,) = everything(database, "SELECT workers FROM orcheo_dispatch.wanted_workers")
    workers: int = row["workers"]
    return workers


# Runs end within the drain time, or are handed over when it has passed.
@pytest.mark.parametrize(("drain", "handed_over"), [("60", False), ("0.2", True)])
def test_scale_in_from_two_workers_to_one_loses_no_run(
    database: Database, stack: Stack, drain: str, handed_over: bool
) -> None:
    stack.environment |= {"ORCHEO_WORKER_DRAIN_TIMEOUT": drain, "ORCHEO_WORKER_CONCURRENCY": "4"}
    runs = insert_runs(database, 24, inputs={"do": "wait", "seconds": 1.5})
    with stack.running("dispatcher"), stack.running("worker"), stack.running("worker") as leaving:
        until(lambda: len(_busy(database)) == 2, what="both workers execute runs")
        assert _wanted(database) >= 2
        leaving.signal(signal.SIGTERM)
        runs += insert_runs(database, 8, inputs={"do": "wait", "seconds": 0.1})
        assert leaving.exit_code() == 0
        until(lambda: all_ended(database), what="all runs ended")
        rows = everything(database, _SETTLED)
        until(lambda: _wanted(database) == 0, what="no worker is wanted")
    assert {row["id"] for row in rows} == set(runs)
    assert {(row["status"], row["state"], row["outcome"], row["succeeded"]) for row in rows} == {
        ("succeeded", "settled", "succeeded", 1)
    }
    assert any(row["requeued"] for row in rows) is handed_over
    # An attempt for each time that it was handed over, and one: no run was begun twice for any other reason.
    assert {row["attempts"] - row["requeued"] for row in rows} == {1}


def _busy(database: Database) -> list[dict[str, Any]]:
    return [row for row in everything(database, _OF_WORKERS) if row["runs"] == 4]
