"""What the code of a run logs, prints, warns of and raises where nobody catches it: told of, and not quoted."""

from __future__ import annotations

import json

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs
from tests.support.processes.processes import Stack, until

_SECRET = "swordfish"


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_noise_of_runs_is_told_of_and_not_quoted(database: Database, stack: Stack, isolation: str) -> None:
    runs = insert_runs(database, 2, inputs={"do": "noise", "text": _SECRET})
    variables = {"ORCHEO_LOG_LEVEL": "TRACE", "ORCHEO_LOG_FORMAT": "json", "ORCHEO_WORKER_ISOLATION": isolation}
    with (
        stack.running("worker", **variables, ORCHEO_WORKER_CONCURRENCY="1") as worker,
        stack.running("dispatcher"),
    ):
        until(lambda: all_are(database, "succeeded"), what="both runs succeed")
        until(lambda: worker.log.count('"run_settled"') == 2, what="both are told of")
    assert _SECRET not in worker.log
    lines = [json.loads(line) for line in worker.lines]
    for run_id in runs:
        told = {
            (line["event"], line.get("stream") or line.get("logger")) for line in lines if line.get("run_id") == run_id
        }
        # The second run's too: what the first did to logging is undone when it ends.
        assert told >= {
            ("run_begun", None),
            ("logged", "a.workflow"),
            ("print_dropped", "stdout"),
            ("print_dropped", "stderr"),
            ("run_settled", None),
        }
    assert sum(line["event"] == "thread_failed" for line in lines) == 2
    # Python tells of a warning once, in each process.
    warned = sum(line["event"] == "python_warned" and line.get("run_id") in runs for line in lines)
    assert warned == (2 if isolation == "process" else 1)
