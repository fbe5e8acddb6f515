"""What the runs of a trial do, under our executor, under Orcheo's, and under Orcheo's stock worker.

Each notes what it does in the file that `TEST_SIDE_EFFECTS` names: `run fence event time pid worker`, one write a line;
the last is the process group of the parent, which for a runner is that of its worker. Steps of workflows note each of
their executions in a file beside it, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    # The last release, which tests/upgrade starts beside this one, has its executors' protocol elsewhere.
    from orcheo_dispatch.worker.executor.protocol import Run

BEGUN, DID, ENDED = "begun", "did", "ended"
"""Side effects."""
STOPPED, SWALLOWED = "stopped", "swallowed"
"""What a run that is stopped notes; no side effects."""
_STEP_SECONDS = 0.2

fence_of_run: ContextVar[int] = ContextVar("fence_of_run", default=0)
"""Orcheo tells its nodes nothing of fences; 0 where nobody does."""


async def play(run: Run) -> Mapping[str, Any]:
    """Do what the inputs say: an executor."""
    fence_of_run.set(run.fence)
    return {"final_state": await act(run.run_id, run.inputs)}


async def act(run_id: str, inputs: Mapping[str, Any]) -> Any:
    """Do what `inputs["do"]` says, and note it."""
    _note(run_id, BEGUN)
    try:
        result = await _ACTS[inputs["do"]](run_id, inputs)
    except asyncio.CancelledError:
        _note(run_id, STOPPED)
        raise
    _note(run_id, ENDED)
    return result


def executions_beside(side_effects: Path) -> Path:
    """Return the file in which steps note their executions."""
    return side_effects.with_name("executions")


def note_execution(run_id: str, label: str, metadata: Mapping[str, Any]) -> None:
    """Note that a step begins; `metadata` is what LangGraph tells it of itself."""
    namespace, _, task = metadata["langgraph_checkpoint_ns"].rpartition("|")
    execution = {
        "run_id": run_id,
        "label": label,
        "namespace": namespace,
        "step": metadata["langgraph_step"],
        "task_id": task.partition(":")[2],
        "at": time.time(),
        "pid": os.getpid(),
    }
    with executions_beside(Path(os.environ["TEST_SIDE_EFFECTS"])).open("a") as file:
        file.write(f"{json.dumps(execution)}\n")


async def _echo(run_id: str, inputs: Mapping[str, Any]) -> Any:
    return {"echo": inputs["marker"]}


async def _wait(run_id: str, inputs: Mapping[str, Any]) -> Any:
    deadline = time.monotonic() + float(inputs["seconds"])
    while (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(left, _STEP_SECONDS))
        _note(run_id, DID)
    return {}


async def _block(run_id: str, inputs: Mapping[str, Any]) -> Any:
    time.sleep(float(inputs["seconds"]))
    _note(run_id, DID)
    return {}


async def _swallow(run_id: str, inputs: Mapping[str, Any]) -> Any:
    deadline = time.monotonic() + float(inputs["seconds"])
    while time.monotonic() < deadline:
        try:
            await asyncio.sleep(_STEP_SECONDS)
        except asyncio.CancelledError:
            _note(run_id, SWALLOWED)
        _note(run_id, DID)
    return {}


async def _fail(run_id: str, inputs: Mapping[str, Any]) -> Any:
    raise ValueError(f"it failed at {inputs['marker']}")


async def _exit(run_id: str, inputs: Mapping[str, Any]) -> Any:
    sys.exit(3)


async def _odd(run_id: str, inputs: Mapping[str, Any]) -> Any:
    return {"nul": "a\x00b", "lone": "\ud800", "nan": float("nan"), "id": uuid4(), 1: inputs["marker"]}


_ACTS = {
    "echo": _echo,
    "wait": _wait,
    "fail": _fail,
    "block": _block,
    "swallow": _swallow,
    "exit": _exit,
    "odd": _odd,
}


def _note(run_id: str, event: str) -> None:
    with Path(os.environ["TEST_SIDE_EFFECTS"]).open("a") as file:
        file.write(
            f"{run_id} {fence_of_run.get()} {event} {time.time():.6f} {os.getpid()} {os.getpgid(os.getppid())}\n"
        )
