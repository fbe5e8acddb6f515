"""Do all runs fail of one error that is not their workflows'? Then this worker does not work, and is not ready."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from shared.logs import log
from worker.execution import Result
from worker.executor import Run, RunRejectedError

STREAK_RUNS = 5
"""So many failures in a row are no accident."""

_OURS = ("worker", "shared")
_PLATFORM = (*_OURS, "orcheo", "orcheo_backend", "langgraph", "langchain_core", "psycopg", "psycopg_pool", "tenacity")
_OF_WORKFLOWS = ("orcheo.nodes", "orcheo.plugins")
"""Parts of the platform that do what a workflow tells them."""
_DRIVERS = ("psycopg", "psycopg_pool", "tenacity")
_CERTAIN = (*_OURS, *_DRIVERS, "langgraph.pregel", "langgraph.checkpoint", "langgraph.store", "langgraph._internal")
"""Raised anywhere else in the platform, an error may be about the definition or the inputs of one workflow."""
_CLASSES_OF_WORKFLOWS = ("langgraph.errors", "orcheo_backend.app.repository")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error of the platform: its class and where it was raised, never its text."""

    error: str
    at: str
    certain: bool
    """Whether runs of a single workflow are evidence enough."""


def fault_of(error: BaseException) -> Fault | None:
    """Return the fault of the platform that `error` is; None where it came out of workflow code or is about it."""
    if isinstance(error, RunRejectedError) or any(_is_of_workflow(each) for each in _chain(error)):
        return None
    known = _known(error)
    if not known:
        return None
    # Where a driver raised it says less than who called the driver.
    _, frame, line = next((each for each in reversed(known) if not _is_in(each[0], _DRIVERS)), known[-1])
    at = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
    return Fault(type(error).__name__, at, _is_in(known[-1][0], _CERTAIN))


class Failing:
    """Counts runs that failed of one fault, one after the other. Thread-safe.

    A failure of workflow code begins the count anew; once `why` is set, only a success clears it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._runs = 0
        self._workflows: set[str] = set()
        self._why: str | None = None

    @property
    def why(self) -> str | None:
        """One line that says of what all runs fail; None where they do not."""
        return self._why

    def note(self, run: Run, result: Result) -> None:
        """Take note of how a run ended; one that was stopped says nothing."""
        if result.stop is not None:
            return
        with self._lock:
            if result.error is None:
                self._clear()
                return
            fault = fault_of(result.error)
            if fault is None or fault != self._fault:
                self._fault, self._runs, self._workflows = fault, 0, set()
            if fault is not None:
                self._count(run, fault)

    def _count(self, run: Run, fault: Fault) -> None:
        self._runs += 1
        self._workflows.add(run.workflow_id)
        if self._runs < STREAK_RUNS or not (fault.certain or len(self._workflows) > 1):
            return
        if self._why is None:
            log.error("runs_failing", runs=self._runs, error=fault.error, at=fault.at)
        self._why = f"the last {self._runs} runs failed of {fault.error} at {fault.at}"

    def _clear(self) -> None:
        if self._why is not None:
            log.info("runs_succeeding")
        self._fault, self._runs, self._workflows, self._why = None, 0, set(), None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and those that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_workflow(error: BaseException) -> bool:
    modules = [module for module, *_ in _known(error)]
    return _is_in(type(error).__module__, _CLASSES_OF_WORKFLOWS) or any(
        _is_in(module, _OF_WORKFLOWS) or not _is_in(module, _PLATFORM) for module in modules
    )


def _known(error: BaseException) -> list[tuple[str, FrameType, int]]:
    """Return module, frame and line of each frame that the error passed through, the standard library's left out."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            found.append((module, trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)
