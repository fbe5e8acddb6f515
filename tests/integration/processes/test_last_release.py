"""Processes of the last release and of this one beside each other, on one database and one Redis."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import insert_runs, read_run
from tests.support.processes.processes import ROOT, Process, Stack, until

_COMMIT = "8557d8fd6c9c7494defe4e65377480475952c200"
"""The last one before packages were imported as `orcheo_dispatch`."""
_STARTED = {"beat": "beat_started", "dispatcher": "dispatcher_started", "worker": "worker_started"}


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the source of the last release out of the repository's history."""
    folder = tmp_path_factory.mktemp("last_release")
    archive = folder / "source.tar"
    command = ["git", "archive", "--format=tar", f"--output={archive}", _COMMIT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the history has no commit {_COMMIT[:12]}: clone it whole (git fetch --unshallow)")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="tar")
    return folder


@contextmanager
def _old(stack: Stack, kind: str, source: Path) -> Iterator[Process]:
    environment = stack.environment_of(kind, ORCHEO_WORKER_EXECUTOR="tests.executors:play") | {
        "PYTHONPATH": str(source)
    }
    with Process(["-m", "ops.cli", kind], environment, source) as process:
        process.saw(_STARTED[kind])
        yield process


@pytest.mark.parametrize("old", [("worker",), ("dispatcher",), ("beat",), ("beat", "dispatcher")], ids="+".join)
def test_last_release_works_beside_this_one(
    database: Database, stack: Stack, last_release: Path, old: tuple[str, ...]
) -> None:
    processes = [
        _old(stack, kind, last_release) if kind in old else stack.running(kind)
        for kind in ("worker", "dispatcher", "beat")
    ]
    with processes[0], processes[1], processes[2]:
        runs = insert_runs(database, 30)
        ended = lambda: all(read_run(database, run)["status"] == "succeeded" for run in runs)  # noqa: E731
        until(ended, what="all runs succeed")
    assert sorted(stack.noted("begun")) == sorted(runs)


def test_workers_of_both_releases_share_the_work(database: Database, stack: Stack, last_release: Path) -> None:
    with _old(stack, "worker", last_release), stack.running("worker"), stack.running("dispatcher"):
        runs = insert_runs(database, 60)
        ended = lambda: all(read_run(database, run)["status"] == "succeeded" for run in runs)  # noqa: E731
        until(ended, what="all runs succeed")
