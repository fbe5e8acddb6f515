"""Only workers need Orcheo: all else runs where it is not installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import insert_runs, ledger
from tests.support.processes.processes import Stack, until

# Read by every Python process that has its folder on PYTHONPATH, before anything else is imported.
_SITECUSTOMIZE = """
import sys

REFUSED = {"orcheo", "orcheo_backend", "orcheo_sdk", "langgraph", "langchain_core", "httpx"}

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
"""


@pytest.fixture
def stack(orcheo_database: Database, redis_url: str, tmp_path: Path) -> Stack:
    """Our processes where Orcheo cannot be imported, on a database that has its tables and not ours."""
    (tmp_path / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    stack = Stack(orcheo_database, redis_url, tmp_path / "side-effects")
    stack.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), stack.environment["PYTHONPATH"]])
    stack.environment["ORCHEO_WORKER_EXECUTOR"] = "orcheo"
    return stack


def test_dispatcher_and_beat_publish_runs_without_orcheo(orcheo_database: Database, stack: Stack) -> None:
    _succeeds(stack, "migrate")
    (by_hand,) = insert_runs(orcheo_database)
    assert "claimed 1, published 1" in _succeeds(stack, "poll")
    assert ledger(orcheo_database, by_hand)["state"] == "published"
    with stack.running("dispatcher") as dispatcher, stack.running("beat"):
        (by_tick,) = insert_runs(orcheo_database)
        dispatcher.saw("claimed=1 published=1")
        until(lambda: ledger(orcheo_database, by_tick)["state"] == "published", what="the run is published")
    assert "published" in _succeeds(stack, "status")
    assert "ModuleNotFoundError" not in dispatcher.log


@pytest.mark.parametrize("isolation", ["adaptive", "process"])
def test_worker_says_in_one_line_that_the_extra_is_missing(stack: Stack, isolation: str) -> None:
    _succeeds(stack, "migrate")
    with stack.command("worker", ORCHEO_WORKER_ISOLATION=isolation) as worker:
        assert worker.exit_code() == 2
    (line,) = [line for line in worker.lines if line.startswith("orcheo-dispatch:")]
    assert "cannot be imported" in line
    assert "pip install 'orcheo-dispatch[orcheo]'" in line
    assert "Traceback" not in worker.log


def test_demo_says_in_one_line_what_it_needs(stack: Stack) -> None:
    with stack.command("demo") as demo:
        assert demo.exit_code() == 2
        demo.finish()
    assert demo.log == "orcheo-dispatch: the demo needs httpx: pip install 'orcheo-dispatch[demo]'\n"


def _succeeds(stack: Stack, command: str) -> str:
    with stack.command(command) as process:
        assert process.exit_code() == 0, process.log
    return process.log
