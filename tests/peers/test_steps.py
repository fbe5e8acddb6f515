"""What is read from the log of a run's steps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.peers.steps import executions, read, wait_for_begin


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the log of a run whose process 7 was killed in step 2, and which process 8 is executing."""
    noted = [(1, "begin", 7), (1, "end", 7), (2, "begin", 7), (2, "begin", 8), (2, "end", 8), (3, "begin", 8)]
    lines = [
        json.dumps({"run": "r", "step": step, "event": event, "at": float(at), "pid": pid})
        for at, (step, event, pid) in enumerate(noted)
    ]
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_executions_counts_begins_of_each_step(log: Path) -> None:
    assert executions(read(log)) == (1, 2, 1, 0, 0)


def test_read_leaves_out_a_line_that_is_being_written(log: Path) -> None:
    complete = read(log)
    with log.open("a") as file:
        file.write('{"run": "r", "st')
    assert read(log) == complete


def test_read_finds_nothing_before_the_first_step(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("step", "after", "not_by", "found"),
    [(3, 0.0, [], True), (4, 0.0, [], False), (1, 2.5, [7], True), (1, 0.0, [7, 8], False), (1, 5.0, [], False)],
)
def test_wait_for_begin_looks_for_step_time_and_process(
    log: Path, step: int, after: float, not_by: list[int], found: bool
) -> None:
    assert wait_for_begin(log, step, seconds=0.05, after=after, not_by=not_by) is found


def test_step_notes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import importlib.util

    source = Path(__file__).parent / "workflows" / "chain_step.py"
    specification = importlib.util.spec_from_file_location("chain_step", source)
    assert specification is not None
    assert specification.loader is not None
    step = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(step)
    monkeypatch.setattr(step, "SECONDS", 0.0)

    asyncio.run(step.execute(str(tmp_path / "run.jsonl"), 1))

    noted = read(tmp_path / "run.jsonl")
    assert [(each.run, each.step, each.event, each.pid) for each in noted] == [
        ("run", 1, "begin", os.getpid()),
        ("run", 1, "end", os.getpid()),
    ]
