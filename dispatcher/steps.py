"""Run the steps of a poll and of the upkeep, each as its own failure domain."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orcheo_dispatch.shared.database.lock_holders import lock_holders
from orcheo_dispatch.shared.database.refused import raised_by_function, reason_of
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import DatabaseError, RowLockedError
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.metrics.steps import StepName


class Steps:
    """Runs steps and logs once per change of state which of them fail and why.

    A step fails if Postgres rejects it, if it times out waiting for a lock, or if it has a bug; the next step still
    runs. Only an unavailable server ends them all.
    """

    def __init__(self, engine: Engine, metrics: DispatcherMetrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._failing: dict[StepName, str] = {}

    @property
    def failing(self) -> tuple[StepName, ...]:
        """The steps that failed when they last ran."""
        return tuple(sorted(self._failing))

    def run[T](self, step: StepName, work: Callable[[], T], otherwise: T) -> T:
        """Return the result of `work`, or `otherwise` if it fails.

        Raises `DatabaseError` if the server is unavailable.
        """
        try:
            result = work()
        except DatabaseError as error:
            if unavailable(error):
                raise
            self._metrics.database_failed()
            self._metrics.steps.failed(step)
            self._refused(step, error)
            return otherwise
        except Exception as error:  # noqa: BLE001 - a bug in one step must not end the others
            self._metrics.steps.failed(step)
            if self._changed(step, type(error).__name__):
                log.error("step_crashed", step=step, **describe(error))
            return otherwise
        self.well(step)
        return result

    def well(self, step: StepName) -> None:
        """Note that this step succeeded or had nothing to do."""
        if self._failing.pop(step, None) is not None:
            log.info("step_recovered", step=step)

    def _refused(self, step: StepName, error: DatabaseError) -> None:
        if isinstance(error, RowLockedError):
            if self._changed(step, "locked"):
                log.warning("step_locked", step=step, by=lock_holders(self._engine) or "unknown")
        elif self._changed(step, reason_of(error.__cause__ or error)):
            log.warning("step_failed", step=step, reason=_reason(error))

    def _changed(self, step: StepName, state: str) -> bool:
        before = self._failing.get(step)
        self._failing[step] = state
        return before != state


def unavailable(error: DatabaseError) -> bool:
    """Return whether the server is unavailable or read-only, so that the next statement would fail as well.

    The error class alone is not sufficient, since a trigger can raise any class: the connection must be broken.
    """
    if not error.answered or failure_of(error.__cause__) is Failure.READ_ONLY:
        return True
    return isinstance(error.__cause__, DBAPIError) and error.__cause__.connection_invalidated


def _reason(error: DatabaseError) -> str:
    """Return the text of a server error; if a function raised it, only the function's name and the SQLSTATE."""
    cause = error.__cause__
    return reason_of(cause) if cause is not None and raised_by_function(cause) else str(error)
