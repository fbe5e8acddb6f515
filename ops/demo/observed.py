"""What can be seen of a run whose worker is killed, and whether it continued correctly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import transaction

_TRACE = text("""
SELECT payload FROM execution_history_steps WHERE execution_id = :run_id ORDER BY step_index
""")

_HOLDER = text("""
SELECT p.pid
  FROM orcheo_dispatch.dispatch AS d
  JOIN orcheo_dispatch.process AS p ON p.id = d.worker_id
 WHERE d.run_id = :run_id
""")


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a step: it began while the worker with this pid held the run."""

    step: str
    pid: int


@dataclass(slots=True)
class Observed:
    """The begun steps and the trace of one run, in the order in which they happened."""

    engine: Engine
    run_id: str
    begun_file: Path
    """One line for each step that the workflow begins."""
    executions: list[Execution] = field(default_factory=list)
    trace: list[Mapping[str, Any]] = field(default_factory=list)

    def look(self) -> Iterator[Execution | Mapping[str, Any]]:
        """Yield what has happened since the last look: steps of the trace, then steps that have begun."""
        # In this order: the ledger names the holder before a step begins, and a holder is replaced seconds later.
        begun = self._begun()
        with transaction(self.engine) as connection:
            trace = connection.execute(_TRACE, {"run_id": self.run_id}).scalars().all()
            pid = connection.execute(_HOLDER, {"run_id": self.run_id}).scalar_one_or_none()
        for payload in trace[len(self.trace) :]:
            self.trace.append(payload)
            yield payload
        for step in begun[len(self.executions) :]:
            execution = Execution(step, pid or 0)
            self.executions.append(execution)
            yield execution

    def _begun(self) -> list[str]:
        if not self.begun_file.exists():
            return []
        # The last line may not be written in full.
        return self.begun_file.read_text(encoding="utf-8").split("\n")[:-1]


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, of whose workers one was killed."""

    status: str
    answer: str
    executions: Sequence[Execution]
    trace: Sequence[Mapping[str, Any]]
    killed_pid: int
    in_flight: str
    """The step in which that worker was killed."""


def faults(ended: Ended, *, steps: Sequence[str], answer: str) -> list[str]:
    """Return what is wrong with a run that should have continued; nothing if these steps led to this answer."""
    found = []
    if ended.status != "succeeded":
        found.append(f"the run is {ended.status}")
    if ended.answer != answer:
        found.append(f"its result is {ended.answer!r} instead of {answer!r}")
    return [*found, *_wrong_counts(ended, steps), *_wrong_workers(ended, steps), *_wrong_trace(ended, steps)]


def nodes(trace: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the nodes whose steps the trace has as finished, in order."""
    return [node for payload in trace for node in payload if node not in {"resumed", "status", "error", "reason"}]


def resumed(trace: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what the trace says about where the run continued."""
    return [payload["resumed"] for payload in trace if "resumed" in payload]


def _wrong_counts(ended: Ended, steps: Sequence[str]) -> Iterator[str]:
    times = Counter(execution.step for execution in ended.executions)
    for step in dict.fromkeys([*steps, *times]):
        expected = 0 if step not in steps else 2 if step == ended.in_flight else 1
        if times[step] != expected:
            yield f"step {step!r} was executed {times[step]} times instead of {expected}"


def _wrong_workers(ended: Ended, steps: Sequence[str]) -> Iterator[str]:
    begun = [execution.step for execution in ended.executions if execution.pid == ended.killed_pid]
    if begun != list(steps[: len(begun)]) or begun[-1:] != [ended.in_flight]:
        yield f"the killed worker executed {begun}, and was killed in {ended.in_flight!r}"
    others = {execution.pid for execution in ended.executions} - {ended.killed_pid}
    if len(others) != 1:
        yield f"{len(others)} other workers continued the run instead of 1"


def _wrong_trace(ended: Ended, steps: Sequence[str]) -> Iterator[str]:
    expected = [step.split()[0] for step in steps]
    if nodes(ended.trace) != expected:
        yield f"the trace has the steps {nodes(ended.trace)} instead of {expected}"
    after = [note["after_step"] for note in resumed(ended.trace)]
    if ended.in_flight in steps and after != [steps.index(ended.in_flight)]:
        yield f"the trace has the run resumed after {after}, and step {ended.in_flight!r} was in flight"
