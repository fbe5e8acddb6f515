"""Read what the steps of a run have noted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STEPS = 5
_LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Noted:
    """The begin or the end of one execution of a step."""

    run: str
    step: int
    event: str
    at: float
    pid: int


def read(log: Path) -> list[Noted]:
    """Return what was noted, in order; a line that is being written is left out."""
    if not log.exists():
        return []
    return [Noted(**json.loads(line)) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def begins(noted: Sequence[Noted]) -> list[Noted]:
    """Return the begins alone."""
    return [each for each in noted if each.event == "begin"]


def executions(noted: Sequence[Noted]) -> tuple[int, ...]:
    """Return how often each step was begun."""
    counted = Counter(each.step for each in begins(noted))
    return tuple(counted[step] for step in range(1, STEPS + 1))


def wait_for_begin(log: Path, step: int, *, seconds: float, after: float = 0.0, not_by: Sequence[int] = ()) -> bool:
    """Wait until a process other than `not_by` begins this step or a later one; tell whether it did in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(each.step >= step and each.at > after and each.pid not in not_by for each in begins(read(log))):
            return True
        time.sleep(_LOOK_SECONDS)
    return False
