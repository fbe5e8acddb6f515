"""All workers are restarted, one after the other, while runs arrive: none fails, and none repeats a finished step."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from signal import Signals
from typing import Any

import psycopg
import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.resume.ground import SCRIPT
from tests.support.database.runs import everything
from tests.support.orcheo.orcheo_stack import ingest
from tests.support.orcheo.stored_steps import (
    finished_steps_repeated,
    install,
    read_executions,
    read_stored,
    steps_in_flight_repeated,
)
from tests.support.processes.processes import Process, Stack, until

_WORKERS = 3
_PER_BATCH = 2
_BATCH_EVERY_SECONDS = 1.0
_STEP_SECONDS = 1.0
_STEPS = ("a", "b", "c", "d")


@dataclass
class _Load:
    """Runs of four steps that arrive for as long as the block lasts."""

    ids: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


@contextmanager
def _arriving(orcheo: OrcheoApi, workflow_id: str, folder: Path) -> Iterator[_Load]:
    load, stop = _Load(), threading.Event()
    body = {"folder": str(folder), "seconds": _STEP_SECONDS}

    def fire() -> None:
        try:
            while not stop.is_set():
                load.ids.extend(run["id"] for run in orcheo.fire_webhooks(workflow_id, [body] * _PER_BATCH))
                stop.wait(_BATCH_EVERY_SECONDS)
        except BaseException as error:
            load.failures.append(error)

    thread = threading.Thread(target=fire)
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


def _replace(stack: Stack, exits: ExitStack, old: Process) -> Process:
    new = exits.enter_context(stack.running("worker"))
    old.signal(Signals.SIGTERM)
    assert old.exit_code() == 0
    return new


def test_rolling_restart_under_load_fails_no_run_and_repeats_no_finished_step(
    orcheo: OrcheoApi, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow_id = ingest(orcheo, "resume rolling", SCRIPT, entrypoint="chain")
    with ExitStack() as exits:
        old = [exits.enter_context(stack.running("worker")) for _ in range(_WORKERS)]
        with psycopg.connect(stack.database.dsn, autocommit=True) as connection:
            install(connection)
        with _arriving(orcheo, workflow_id, tmp_path) as load:
            until(lambda: len(read_executions(tmp_path / "executions")) > 4 * _WORKERS, what="all workers have runs")
            for each in old:
                _replace(stack, exits, each)
        assert load.failures == []
        until(lambda: _rows(stack, "status IN ('pending', 'running')") == [], what="all runs ended")
        until(lambda: _rows(stack, "slot IN ('held', 'due')") == [], what="all slots are returned")
        with psycopg.connect(stack.database.dsn, autocommit=True) as connection:
            stored = read_stored(connection)
    rows = _rows(stack)
    assert sorted(row["id"] for row in rows) == sorted(load.ids)
    assert {row["status"] for row in rows} == {"succeeded"}
    executions = read_executions(tmp_path / "executions")
    assert finished_steps_repeated(executions, stored) == []
    # A worker that ended handed its runs over: a step that was in flight is repeated once for each time.
    handed_over = {row["id"]: _handed_over(row["payload"]["audit_log"]) for row in rows}
    repeated = steps_in_flight_repeated(executions)
    for (run_id, _), times in repeated.items():
        assert times <= len(handed_over[run_id])
    assert {(each.run_id, each.label) for each in executions} == {
        (run_id, f"{step} 1") for run_id in load.ids for step in _STEPS
    }
    gaps = sorted(gap for each in handed_over.values() for gap in each)
    assert len(gaps) >= _WORKERS
    assert {row["attempts"] - row["refunded"] for row in rows} <= {0, 1}
    with capsys.disabled():
        print(
            f"\nrolling restart: {len(rows)} runs, {len(gaps)} handed over, {sum(repeated.values())} steps in flight"
            f" repeated; begun again after {gaps[len(gaps) // 2]:.2f} s (median), {gaps[-1]:.2f} s (longest)"
        )


def _rows(stack: Stack, condition: str = "true") -> list[dict[str, Any]]:
    return everything(
        stack.database,
        "SELECT r.id, r.status, r.payload, d.attempts, d.refunded FROM workflow_runs AS r"
        f" LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id WHERE {condition}",
    )


def _handed_over(audit_log: list[dict[str, Any]]) -> list[float]:
    """Return the seconds from each time that the run was handed over until it began again."""
    at = [(record["action"], datetime.fromisoformat(record["at"])) for record in audit_log]
    return [
        (began - ended).total_seconds()
        for (action, ended), (_, began) in itertools.pairwise(at)
        if action == "run_requeued"
    ]
