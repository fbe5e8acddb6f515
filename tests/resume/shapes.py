"""The shapes of graphs in `workflows/steps.py`, and the cases that are made of them: what is killed, and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Killed(StrEnum):
    """What is killed with SIGKILL."""

    WORKER = "worker"
    """The main process of the worker that holds the run."""
    RUNNER = "runner"
    """The process that executes the run."""
    POSTGRES = "Postgres"
    """The server and its backends; it is started again."""
    REDIS = "Redis"
    """The server; it is started again, empty."""

    @property
    def loses_the_run(self) -> bool:
        """Whether the run is requeued: without them it simply continues where it is."""
        return self in (Killed.WORKER, Killed.RUNNER)


class When(StrEnum):
    """When it is killed."""

    INSIDE = "inside"
    """While the step is executed."""
    AFTER = "after"
    """As soon as the step has ended: before, while or after it is stored."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A graph and its steps, in the order in which they begin; of steps that begin together, in any order."""

    entrypoint: str
    steps: tuple[str, ...]
    leases: float = 0.0
    """How long the second step takes at least, in leases of the worker."""
    asks: bool = False
    """Whether the run stops at an interrupt in its last step."""


SHAPES = {
    "chain": Shape("chain", ("a 1", "b 1", "c 1", "d 1")),
    "loop": Shape("loop", ("a 1", "a 2", "a 3", "a 4", "b 1")),
    "branches": Shape("branches", ("start 1", "a 1", "b 1", "c 1", "join 1")),
    "subgraph": Shape("subgraph", ("a 1", "b 1", "c 1", "d 1", "e 1")),
    "sub-workflow": Shape("sub_workflow", ("a 1", "b 1", "c 1", "d 1")),
    "map": Shape("fan_out", ("a 1", "each-1 1", "each-2 1", "each-3 1", "join 1")),
    "interrupt": Shape("asking", ("a 1", "b 1", "c 1"), asks=True),
    "long step": Shape("lasting", ("a 1", "b 1", "c 1"), leases=2.5),
    "agent": Shape("agent", ("model 1", "tools 1", "model 2", "tools 2", "model 3", "tools 3", "model 4")),
    "retry": Shape("retried", ("a 1", "b 1", "b 2", "b 3", "c 1")),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One test."""

    shape: str
    killed: Killed
    when: When
    step: str

    def __str__(self) -> str:
        return f"{self.shape}-{self.killed}-{self.when}-{self.step}"


# The worker first: after a runner was killed, the workflow has runners of its own for a while.
ALL = [
    Case(shape, killed, when, step)
    for shape in SHAPES
    for killed in Killed
    for when in When
    for step in SHAPES[shape].steps
]
SHORT = [
    Case("chain", Killed.WORKER, When.AFTER, "b 1"),
    Case("loop", Killed.RUNNER, When.INSIDE, "a 3"),
    Case("branches", Killed.WORKER, When.INSIDE, "b 1"),
    Case("subgraph", Killed.POSTGRES, When.INSIDE, "c 1"),
    Case("sub-workflow", Killed.RUNNER, When.INSIDE, "c 1"),
    Case("map", Killed.RUNNER, When.AFTER, "each-2 1"),
    Case("interrupt", Killed.REDIS, When.INSIDE, "b 1"),
    Case("agent", Killed.WORKER, When.INSIDE, "tools 2"),
    Case("retry", Killed.RUNNER, When.AFTER, "b 1"),
]
