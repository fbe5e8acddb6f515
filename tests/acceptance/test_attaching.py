"""A runner gets ready without a connection, an import or much else, and the main process's half without Orcheo."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any, cast

import pytest
from orcheo_backend.app.dependencies import get_repository

from orcheo_dispatch.ops.demo import WORKFLOW
from orcheo_dispatch.worker.executor.protocol import Run
from tests.support.database.databases import Database
from tests.support.orcheo.executions import history, new_run

_MAX_ATTACH_MS = 30.0
_MAIN_HALF = """
import sys
import orcheo_dispatch.worker.books.books, orcheo_dispatch.worker.frames
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_runner_attaches_without_connections_or_imports(orcheo_here: Database) -> None:
    async def uploaded() -> Run:
        try:
            return await new_run("build", script=WORKFLOW, inputs={"body": {"name": "Ada"}})
        finally:
            await cast("Any", get_repository()).close()

    run = asyncio.run(uploaded())
    command = [sys.executable, "-m", "tests.support.runners.forked_runner", json.dumps(asdict(run))]
    told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr[-2000:]
    cost = json.loads(told.stdout.splitlines()[-1])
    print(cost)
    assert cost["exit"] == 0
    assert cost["output"]
    assert history(orcheo_here, run)[0]["status"] == "completed"
    assert cost["connections"] == 0
    assert cost["attach_imports"] == cost["run_imports"] == []
    assert cost["imported"]["python"] == cost["prepared"]["python"] == 1
    assert cost["attached"]["cpu_ms"] - cost["started"]["cpu_ms"] < _MAX_ATTACH_MS


def test_nothing_is_traced_before_the_fork(orcheo_here: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client of LangSmith starts a thread, of which a fork would copy the locks alone.
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "a key")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://127.0.0.1:1")
    command = [
        sys.executable,
        "-c",
        "import tests.support.runners.forked_preload as forked; print(forked.PREPARED.python)",
    ]
    told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.splitlines()[-1] == "1"


def test_half_of_the_main_process_imports_no_orcheo() -> None:
    told = subprocess.run([sys.executable, "-c", _MAIN_HALF], check=False, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    modules = set(json.loads(told.stdout.replace("'", '"')))
    assert "orcheo_dispatch" in modules
    assert not modules & {"orcheo", "orcheo_backend", "orcheo_sdk", "langgraph", "langchain_core", "langchain"}
