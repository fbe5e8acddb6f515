"""Processes of the last release and of this one beside each other, on one database and one Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from signal import Signals

import pytest

from tests.support.database.databases import Database
from tests.support.database.runs import all_are, insert_runs, read_run
from tests.support.processes.processes import Process, Stack, until
from tests.upgrade.releases import LAST, NotInHistoryError, unpack

_KINDS = ("worker", "dispatcher", "beat")
_BETWEEN_RUNS_SECONDS = 0.2
_RUNS_PER_STEP = 5
_STARTED = {"beat": "beat_started", "dispatcher": "dispatcher_started", "worker": "worker_started"}


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the source of the last release out of the repository's history."""
    folder = tmp_path_factory.mktemp("last_release") / "source"
    try:
        unpack(LAST, folder)
    except NotInHistoryError as error:
        pytest.skip(str(error))
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
    processes = [_old(stack, kind, last_release) if kind in old else stack.running(kind) for kind in _KINDS]
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


@contextmanager
def _arriving(database: Database) -> Iterator[list[str]]:
    """Insert runs meanwhile, and yield their ids."""
    runs: list[str] = []
    stop = threading.Event()

    def insert() -> None:
        while not stop.wait(_BETWEEN_RUNS_SECONDS):
            runs.extend(insert_runs(database))

    thread = threading.Thread(target=insert)
    thread.start()
    try:
        yield runs
    finally:
        stop.set()
        thread.join()


def test_releases_replace_each_other_forth_and_back_while_runs_arrive(
    database: Database, stack: Stack, last_release: Path
) -> None:
    def processes(*, old: bool) -> list[AbstractContextManager[Process]]:
        return [_old(stack, kind, last_release) if old else stack.running(kind) for kind in _KINDS]

    def more_have_ended() -> None:
        before = len(stack.noted("ended"))
        until(lambda: len(stack.noted("ended")) >= before + _RUNS_PER_STEP, what=f"{_RUNS_PER_STEP} more runs ended")

    with ExitStack() as exits, _arriving(database) as runs:
        running = [exits.enter_context(each) for each in processes(old=True)]
        more_have_ended()
        for old in (False, True):
            started = [exits.enter_context(each) for each in processes(old=old)]
            more_have_ended()
            for each in running:
                each.signal(Signals.SIGTERM)
                assert each.exit_code() == 0
                more_have_ended()
            running = started
    # The processes that end with the block would leave runs to nobody.
    with processes(old=False)[0], processes(old=False)[1]:
        until(lambda: all_are(database, "succeeded"), what="all runs succeed")
    assert sorted(stack.noted("begun")) == sorted(runs)
