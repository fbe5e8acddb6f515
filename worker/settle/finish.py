"""Finish runs whose end is written: queue their remaining work, count them, and log one line each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from orcheo_dispatch.shared.ledger.model import Outcome
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.worker.execution import Execution, Executions, How, Stop
from orcheo_dispatch.worker.settle.aftermath import Aftermath, Aftermaths
from orcheo_dispatch.worker.settle.ends import End
from orcheo_dispatch.worker.settle.failing import Failing


class Finisher:
    """Remove ended runs and pass on the remaining work for them; never raises."""

    def __init__(
        self, executions: Executions, aftermaths: Aftermaths, failing: Failing, metrics: WorkerMetrics
    ) -> None:
        self._executions = executions
        self._aftermaths = aftermaths
        self._failing = failing
        self._metrics = metrics

    def finish(self, ends: Sequence[End]) -> None:
        """Finish runs whose end is written, or was refused because another worker holds them."""
        self._executions.remove(end.execution for end in ends)
        for end in ends:
            try:
                self._finish(end)
            except Exception as error:  # noqa: BLE001 - a fault of ours with one run; the others are finished as well
                log.error("finish_failed", run_id=end.execution.claim.run_id, **describe(error))
            finally:
                end.execution.settled.set()

    def abandon(self, executions: Sequence[Execution]) -> None:
        """Remove runs that could not be settled: their leases are no longer extended, so they are reaped."""
        self._executions.remove(executions)
        for execution in executions:
            execution.settled.set()
            _trace(execution, "abandoned")

    def _finish(self, end: End) -> None:
        settled = end.settled
        slot_due_in = settled.slot_due_in if settled is not None else None
        requeued = settled is not None and settled.outcome is Outcome.REQUEUED
        open_trace = _has_open_trace(end)
        if slot_due_in is not None or requeued or open_trace:
            self._aftermaths.put(
                Aftermath(end.execution.claim.run_id, slot_due_in, trace_open=open_trace, requeued=requeued)
            )
        self._metrics.run_ended()
        self._log_end(end)

    def _log_end(self, end: End) -> None:
        execution, settled = end.execution, end.settled
        run, claim, result = execution.run, execution.claim, execution.result
        if settled is None:
            self._metrics.settle_was_stale()
            reason = "not ours" if end.ending is None else "stale"
            _trace(execution, reason.replace(" ", "_"))
            log.warning("run_not_settled", run_id=claim.run_id, fence=claim.fence, reason=reason)
            return
        seconds = time.monotonic() - execution.begun_at
        self._metrics.run_settled(settled.outcome, run.triggered_by, seconds)
        assert result is not None
        _trace(execution, settled.outcome.value)
        self._failing.note(run, result)
        raised = {"error": result.kind, "at": result.at} if result.kind is not None else {}
        log.info(
            "run_settled",
            run_id=claim.run_id,
            workflow_id=run.workflow_id,
            fence=claim.fence,
            outcome=settled.outcome.value,
            seconds=round(seconds, 3),
            **raised,
            **({"retry_at": settled.retry_at} if settled.retry_at is not None else {}),
        )


def _trace(execution: Execution, outcome: str) -> None:
    if execution.trace is not None:
        how = execution.result.how.value if execution.result is not None else "unknown"
        execution.trace.settled(how=how, outcome=outcome, ended_at=execution.ended_at)


def _has_open_trace(end: End) -> bool:
    """Return whether the run has ended and its executor could not close its trace, or was not allowed to."""
    result = end.execution.result
    assert result is not None
    ended = end.settled is not None and end.settled.ended
    left = result.how in (How.CRASHED, How.SUSPECTED, How.LOST) or result.ignored_stop or result.stop is Stop.LEASE_OVER
    return ended and left
