"""A step that is executed again sends the key that it had before, so that a server does not repeat its effect."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import Signals

import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from orcheo_dispatch.ops.sandbox.orcheo_client import Record
from tests.support.database.runs import one
from tests.support.orcheo.orcheo_stack import ended, ingest
from tests.support.processes.processes import Stack, until
from tests.support.servers.charges import Charges, charging

_SCRIPT = (Path(__file__).parent / "workflows" / "charges.py").read_text()
_NAME = "orcheo_dispatch"
_EFFECTS = {
    "chain": {"/a": 1, "/b": 1, "/c": 1},
    "loop": {"/a": 3, "/b": 1},
    "branches": {"/start": 1, "/a": 1, "/b": 1, "/c": 1, "/join": 1},
    "subgraph": {"/a": 1, "/b": 1, "/c": 1, "/d": 1},
    "unstored": {"/a": 1, "/b": 1, "/c": 1, "/d": 1},
    "mapped": {"/start": 1, "/m0": 1, "/m1": 1, "/m2": 1, "/join": 1},
}
_ALL = [
    (shape, path, time)
    for shape, paths in _EFFECTS.items()
    for path, times in paths.items()
    for time in range(1, times + 1)
]
# /a and /m1 are those of Orcheo's HTTP node. `make resume` tries all.
_SHORT = [
    ("chain", "/a", 1),
    ("chain", "/b", 1),
    ("loop", "/a", 2),
    ("branches", "/b", 1),
    ("subgraph", "/c", 1),
    ("unstored", "/c", 1),
    ("mapped", "/m1", 1),
]
_CASES = _ALL if os.environ.get("TEST_RESUME") == "all" else _SHORT

_STORED = """
WITH run (id, name) AS (VALUES (%s, %s)), stored (run_id, content) AS (
    SELECT thread_id, encode(blob, 'escape') FROM checkpoint_blobs
     UNION ALL SELECT thread_id, encode(blob, 'escape') FROM checkpoint_writes
     UNION ALL SELECT thread_id, checkpoint::text || metadata::text FROM checkpoints
     UNION ALL SELECT execution_id, runnable_config::text FROM execution_history
     UNION ALL SELECT execution_id, payload::text FROM execution_history_steps
)
SELECT count(*) AS rows, count(*) FILTER (WHERE position(run.name IN content) > 0) AS found
  FROM run JOIN stored ON stored.run_id = run.id
"""


@pytest.fixture(scope="module")
def workflows(orcheo: OrcheoApi) -> dict[str, str]:
    """Return the ids of the workflows by shape."""
    return {shape: ingest(orcheo, f"charges {shape}", _SCRIPT, entrypoint=shape) for shape in _EFFECTS}


@pytest.fixture
def charges() -> Iterator[Charges]:
    """The API that the workflows post to."""
    with charging() as serving:
        yield serving


def _start(orcheo: OrcheoApi, workflow_id: str, charges: Charges) -> Record:
    (run,) = orcheo.fire_webhooks(workflow_id, [{"url": charges.url}])
    return run


@pytest.mark.parametrize(("shape", "path", "time"), _CASES)
def test_step_in_which_its_worker_was_killed_sends_the_same_key_again(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], charges: Charges, shape: str, path: str, time: int
) -> None:
    charges.hold(path, time)
    with stack.running("worker") as first:
        run = _start(orcheo, workflows[shape], charges)
        until(lambda: charges.effects[path] == time, what="the server has executed the effect and not answered")
        first.signal(Signals.SIGKILL)
        first.exit_code()
    with stack.running("worker") as second:
        seen = ended(orcheo, run)
        assert "run_resumed" in second.log
    assert seen["status"] == "succeeded", seen
    _check_keys(run, charges, shape)
    sent = Counter(request.key for request in charges.seen(path))
    assert sorted(sent.values()) == [1] * (_EFFECTS[shape][path] - 1) + [2]
    # An attempt that has finished a step does not count.
    attempts = {"attempt 1", "attempt 2"} if (path, time) == (charges.requests[0].path, 1) else {"attempt 1"}
    assert {request.attempt for request in charges.requests} == attempts
    _check_output(stack, seen)


def _check_keys(run: Record, charges: Charges, shape: str) -> None:
    """Check that each step has had one effect under a key of its own, which names the run."""
    assert charges.effects == _EFFECTS[shape]
    paths = {(request.key, request.path) for request in charges.requests}
    assert Counter(path for _, path in paths) == _EFFECTS[shape]
    assert len({key for key, _ in paths}) == len(paths)
    for key, _ in paths:
        run_id, checkpoint_id, task_id = key.split(":")
        assert run_id == run["id"]
        assert checkpoint_id
        assert task_id


def _check_output(stack: Stack, run: Record) -> None:
    """Check that neither the run nor its trace and checkpoints show what the steps were given."""
    assert _NAME not in json.dumps(run)
    stored = one(stack.database, _STORED, run["id"], _NAME)
    assert stored["rows"] > 0
    assert stored["found"] == 0


def test_runs_of_one_workflow_send_different_keys(
    orcheo: OrcheoApi, stack: Stack, workflows: dict[str, str], charges: Charges
) -> None:
    with stack.running("worker"):
        runs = [_start(orcheo, workflows["mapped"], charges) for _ in range(3)]
        assert all(ended(orcheo, run)["status"] == "succeeded" for run in runs)
    keys = Counter(request.key for request in charges.requests)
    assert set(keys.values()) == {1}
    assert Counter(key.partition(":")[0] for key in keys) == {run["id"]: 5 for run in runs}
