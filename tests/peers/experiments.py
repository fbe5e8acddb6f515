"""The experiments: a process is killed in the middle of a step, or paused there until another one has taken over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.ground import ROLES
from tests.peers.peer import Peer
from tests.peers.steps import Noted, begins, executions, read, wait_for_begin

LIMIT_SECONDS = 60.0
"""How long a run has to end after a process is ready to execute it, and how long one is paused at most."""
THIRD, LAST = 3, 5
_BEGIN_SECONDS = 60.0
# What a stale process has left to do takes two steps.
_STALE_SECONDS = 8.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a run whose process was killed in its third step."""

    status: str
    ended: bool
    seconds: float
    """From the kill to the end, or to the limit."""
    executions: tuple[int, ...]
    """Of each step."""


@dataclass(frozen=True, slots=True)
class Paused:
    """What became of a run whose process was paused in a step."""

    step: int

    status: str
    ended: bool
    taken_over: bool
    """Whether the second process began a step before the limit."""
    executions: tuple[int, ...]
    stale_steps: int
    """Steps that the paused process began after it continued."""
    stale_checkpoints: int
    """Rows of finished steps that it wrote after it continued."""
    stale_changes: int
    """Changes of the row of the run that it wrote after it continued."""


def kill(peer: Peer, log: Path) -> Killed:
    """Kill the process in step 3, start it again, and see what becomes of the run."""
    worker = peer.start(ROLES[0])
    try:
        run_id = _begun(peer, log, THIRD)
        killed_at = time.monotonic()
    finally:
        worker.kill()
    worker = peer.start(ROLES[0])
    try:
        status, at = _end(peer, run_id)
        return Killed(status, status in peer.ended, at - killed_at, executions(read(log)))
    finally:
        worker.kill()


def pause(peer: Peer, log: Path, step: int) -> Paused:
    """Pause the process in this step until a second one executes the run, then let it continue."""
    workers = [peer.start(ROLES[0])]
    try:
        run_id = _begun(peer, log, step)
        peer.ground.note_writes([*peer.checkpoints, *peer.runs])
        stale = workers[0].pids()
        workers[0].pause()
        paused_at = time.time()
        workers.append(peer.start(ROLES[1]))
        taken_over = wait_for_begin(log, 1, seconds=LIMIT_SECONDS, after=paused_at, not_by=stale)
        continued_at = time.time()
        workers[0].continue_()
        _end(peer, run_id)
        time.sleep(_STALE_SECONDS)
        status = peer.status(run_id)
        if taken_over and not peer.ground.written(workers[1].role, peer.checkpoints, paused_at):
            raise RuntimeError("the second process finished steps, but none of its writes was noted")
        role = workers[0].role
        return Paused(
            step,
            status,
            status in peer.ended,
            taken_over,
            executions(read(log)),
            _begun_by(stale, read(log), continued_at),
            peer.ground.written(role, peer.checkpoints, continued_at),
            peer.ground.written(role, peer.runs, continued_at),
        )
    finally:
        for worker in workers:
            worker.kill()


def _begun(peer: Peer, log: Path, step: int) -> str:
    """Start a run, and return its id in the middle of this step."""
    run_id = peer.submit(log)
    if not wait_for_begin(log, step, seconds=_BEGIN_SECONDS):
        raise RuntimeError(f"step {step} did not begin within {_BEGIN_SECONDS:g} s: run {peer.status(run_id)}")
    peer.wait_in_step()
    return run_id


def _end(peer: Peer, run_id: str) -> tuple[str, float]:
    """Wait until the run has ended or the limit is reached; return its status and when that was."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (status := peer.status(run_id)) not in peer.ended and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return status, time.monotonic()


def _begun_by(pids: Sequence[int], noted: Sequence[Noted], since: float) -> int:
    return sum(1 for each in begins(noted) if each.pid in pids and each.at > since)
