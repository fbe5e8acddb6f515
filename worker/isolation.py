"""Which runs get a runner of their own."""

from __future__ import annotations

from shared.logs import log
from shared.runs import Run
from shared.settings import WorkerIsolation


class Isolation:
    """Under `adaptive` the workflow versions that have harmed others, and runs that are suspected of it."""

    def __init__(self, mode: WorkerIsolation) -> None:
        self._mode = mode
        self._versions: dict[str, str] = {}

    def is_isolated(self, run: Run) -> bool:
        """Tell whether a run is to be alone in its runner."""
        if self._mode is WorkerIsolation.ADAPTIVE:
            return run.suspect or run.workflow_version_id in self._versions
        return self._mode is WorkerIsolation.PROCESS

    def convict(self, run: Run, reason: str) -> None:
        """Have all runs of this run's workflow version isolated from now on."""
        if run.workflow_version_id not in self._versions:
            self._versions[run.workflow_version_id] = reason
            log.warning(
                "workflow_isolated", workflow_id=run.workflow_id, version_id=run.workflow_version_id, reason=reason
            )
