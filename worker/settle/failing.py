"""Detect that all runs fail with the same platform error, so that this worker reports that it is not ready."""

from __future__ import annotations

import threading

from orcheo_dispatch.shared.ledger.runs import Run
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.execution import How, Result
from orcheo_dispatch.worker.frames import Fault

STREAK_RUNS = 5
"""Number of consecutive failures after which a fault may count as this worker's."""


class Failing:
    """Count consecutive runs that failed with the same fault. Thread-safe.

    A failure of workflow code resets the count; once `why` is set, only a success clears it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._runs = 0
        self._workflows: set[str] = set()
        self._why: str | None = None

    @property
    def why(self) -> str | None:
        """One line that says why all runs fail; None if they do not."""
        return self._why

    def note(self, run: Run, result: Result) -> None:
        """Record how a run ended; a stopped run does not count."""
        if result.stop is not None:
            return
        with self._lock:
            if result.how is How.SUCCEEDED:
                self._clear()
                return
            fault = result.fault
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
        self._why = f"the last {self._runs} runs failed with {fault.error} at {fault.at}"

    def _clear(self) -> None:
        if self._why is not None:
            log.info("runs_recovered")
        self._fault, self._runs, self._workflows, self._why = None, 0, set(), None
