"""Convert the end of a run in its runner into the run's status, error and output, and its outcome in the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orcheo_dispatch.shared.ledger.model import Outcome
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import InterruptedRuns, LostRuns, Retries
from orcheo_dispatch.worker.execution import How, Result, Stop

TIMEOUT_KEY = "run_timeout_seconds"
"""Key in a workflow's `runnable_config.metadata` that limits the duration of its runs (seconds)."""

FINAL_ERRORS = frozenset(
    {
        "GraphChangedError",
        "GraphRecursionError",
        "ImportError",
        "InvalidUpdateError",
        "ModuleNotFoundError",
        "ScriptIngestionError",
        "SyntaxError",
        "UnreadableRun",
        "ValidationError",
        "WorkflowVersionNotFoundError",
        "output_too_large",
        "unstorable_output",
    }
)
"""Classes of errors that another attempt would repeat: no retry policy applies to them."""


def timeout_of(run: Run, limit: float) -> float:
    """Return the timeout of this run (seconds): what operators decided, else the setting; less if the run says so."""
    limit = limit if run.rules.timeout is None else run.rules.timeout
    config: object = run.runnable_config
    metadata = config.get("metadata") if isinstance(config, Mapping) else None
    wanted = metadata.get(TIMEOUT_KEY) if isinstance(metadata, Mapping) else None
    if wanted is None:
        return limit
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
        log.warning("run_timeout_ignored", run_id=run.run_id, workflow_id=run.workflow_id, takes="seconds above 0")
        return limit
    # Compare before converting: JSON has integers that no float can hold.
    return float(min(limit, wanted))


def ending_of(settings: Settings, run: Run, result: Result, timeout: float) -> Ending | None:
    """Return the ending to write for a run that ended in its runner; None if this worker must not write one."""
    if result.stop is not None:
        return ending_of_stopped(settings, run, result.stop, timeout)
    error = result.error or result.kind or "The run failed."
    match result.how:
        case How.SUCCEEDED:
            return Ending.succeeded(result.output or "{}")
        case How.WAITING:
            return _ending_of_waiting(settings, result)
        case How.REJECTED:
            return Ending.cancelled(error)
        case How.CRASHED:
            return _ending_of_crashed(settings, run, error)
        case How.SUSPECTED:
            return _ending_of_lost(settings, run, error, suspect=True)
        case How.LOST:
            return _ending_of_lost(settings, run, error, suspect=False)
        case _:
            reason = result.kind or "failed"
            return Ending.failed(error, reason=reason, retry=_may_be_retried(settings, run, reason))


def ending_of_stopped(settings: Settings, run: Run, stop: Stop, timeout: float) -> Ending | None:
    """Return the ending to write for a stopped run; None if this worker must not write one."""
    match stop:
        case Stop.CANCELLED:
            # The API has ended it already; this only closes the ledger's side.
            return Ending.cancelled("Run was cancelled.")
        case Stop.TIMED_OUT:
            error = f"Run timed out after {timeout:g} s."
            retry = _retries(settings, run) is not Retries.OFF
            return Ending.failed(error, reason="timed_out", outcome=Outcome.TIMED_OUT, retry=retry)
        case Stop.LOST:
            return None
        case Stop.DRAINED:
            why, reason = "Worker stopped before the run ended.", "drained"
        case Stop.LEASE_OVER:
            why, reason = "Worker could not renew its lease.", "lease_over"
    # Apply the rule for lost runs, as the dispatcher would once the lease has expired.
    rule = lost_runs_of(settings, run)
    if rule is LostRuns.HOLD:
        return None
    if rule is LostRuns.RESUME and stop is Stop.DRAINED:
        # It continues elsewhere after its last finished step, so a drain costs it no attempt.
        return Ending.requeued(why, refund=True)
    if rule.requeues and run.attempt < settings.max_attempts:
        return Ending.requeued(why)
    return Ending.failed(why, reason=reason, outcome=Outcome.LOST)


def stopped_status(stop: Stop, ending: Ending | None) -> tuple[str | None, str]:
    """Return what an executor learns of its cancellation: the run's future status (None if unknown) and the reason."""
    if ending is None or stop is Stop.LEASE_OVER:
        return None, "The run is no longer to be written by this worker."
    return ending.status, ending.why


def unstorable(error: BaseException) -> Ending:
    """Return the ending of a run whose output cannot be stored."""
    return Ending.failed(f"The run's output cannot be stored: {type(error).__name__}.", reason="unstorable_output")


def lost_runs_of(settings: Settings, run: Run) -> LostRuns:
    """Return what happens to this run if its worker is lost: what operators decided, else the setting."""
    return run.rules.lost_runs or settings.lost_runs


def _retries(settings: Settings, run: Run) -> Retries:
    return run.rules.retries or settings.retries


def _may_be_retried(settings: Settings, run: Run, kind: str) -> bool:
    """Return whether another attempt may succeed where this one failed with an error of this class."""
    return _retries(settings, run) is not Retries.OFF and kind.rpartition(".")[2] not in FINAL_ERRORS


def _ending_of_waiting(settings: Settings, result: Result) -> Ending:
    """Return the ending of a run that stopped at an interrupt."""
    output = result.output or "{}"
    if settings.interrupted_runs is InterruptedRuns.SUCCEED or result.checkpoint_id is None:
        return Ending.succeeded(output)
    keeps_slot = settings.interrupted_runs is InterruptedRuns.WAIT_WITH_SLOT
    return Ending.waiting(
        output, checkpoint_id=result.checkpoint_id, interrupts=max(1, result.interrupts), keeps_slot=keeps_slot
    )


def _ending_of_crashed(settings: Settings, run: Run, why: str) -> Ending:
    """Return the ending of a run that ended its runner: requeued if the rule for lost runs allows it, else failed."""
    if lost_runs_of(settings, run).requeues and run.attempt < settings.max_attempts:
        return Ending.requeued(why, suspect=True)
    return Ending.failed(why, reason="crashed")


def _ending_of_lost(settings: Settings, run: Run, why: str, *, suspect: bool) -> Ending | None:
    """Return the ending of a run that did not, or not certainly, end its runner: the attempt does not count."""
    rule = lost_runs_of(settings, run)
    if rule is LostRuns.HOLD:
        return None
    if rule.requeues:
        return Ending.requeued(why, suspect=suspect, refund=True)
    return Ending.failed(why, reason="runner_lost", outcome=Outcome.LOST)
