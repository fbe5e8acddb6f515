"""How a run ends, made of how its coroutine ended: status, error, output, and what the ledger may say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from shared.ledger import Outcome
from shared.logs import log
from shared.raised import class_name
from shared.runs import Ending, Run
from shared.settings import LostRuns, Settings
from worker.error_text import error_text
from worker.execution import Result, Stop
from worker.executor import RunRejectedError, Stopped
from worker.payload import storable

TIMEOUT_KEY = "run_timeout_seconds"
"""Where a workflow's `runnable_config.metadata` has this, its runs may take no longer."""


def timeout_of(run: Run, limit: float) -> float:
    """Return the seconds that this run may take: the setting, or less where its own configuration says so."""
    config: object = run.runnable_config
    metadata = config.get("metadata") if isinstance(config, Mapping) else None
    wanted = metadata.get(TIMEOUT_KEY) if isinstance(metadata, Mapping) else None
    if wanted is None:
        return limit
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
        log.warning("run_timeout_ignored", run_id=run.run_id, workflow_id=run.workflow_id, takes="seconds above 0")
        return limit
    # Compared before it is converted: JSON has integers that no float can hold.
    return float(min(limit, wanted))


def ending_of(settings: Settings, run: Run, result: Result, timeout: float) -> Ending | None:
    """Turn how the coroutine ended into how the run ends; None where that is not this worker's to say."""
    if result.stop is not None:
        return ending_of_stopped(settings, run, result.stop, timeout)
    if isinstance(result.error, RunRejectedError):
        return Ending.cancelled(error_text(result.error))
    if result.error is not None:
        return Ending.failed(error_text(result.error), reason=class_name(result.error))
    try:
        output = json.dumps(storable(dict(result.output or {})), allow_nan=False)
    except Exception as error:  # noqa: BLE001 - an object may do anything while it is being written
        return unstorable(error)
    return Ending.succeeded(output)


def ending_of_stopped(settings: Settings, run: Run, stop: Stop, timeout: float) -> Ending | None:
    """Turn a stop into how the run ends; None where it is left to others."""
    match stop:
        case Stop.CANCELLED:
            # The API's word stands already; this only closes our side.
            return Ending.cancelled("Run was cancelled.")
        case Stop.TIMED_OUT:
            error = f"Run timed out after {timeout:g} s."
            return Ending.failed(error, reason="timed_out", outcome=Outcome.TIMED_OUT)
        case Stop.LOST:
            return None
        case Stop.DRAINED:
            why, reason = "Worker stopped before the run ended.", "drained"
        case Stop.LEASE_OVER:
            why, reason = "Worker could not renew its lease.", "lease_over"
    # The policy for lost runs, as the dispatcher would apply it once the lease is over.
    if settings.lost_runs is LostRuns.HOLD:
        return None
    if settings.lost_runs is LostRuns.REQUEUE and run.attempt < settings.max_attempts:
        return Ending.requeued(why)
    return Ending.failed(why, reason=reason, outcome=Outcome.LOST)


def explain(stop: Stop, ending: Ending | None) -> Stopped:
    """Tell the executor what to make of its cancellation."""
    if ending is None or stop is Stop.LEASE_OVER:
        return Stopped(None, "The run may be another worker's by now.")
    return Stopped(ending.status, ending.why)


def unstorable(error: BaseException) -> Ending:
    """Return the ending of a run whose output nobody can store."""
    return Ending.failed(f"The run's output cannot be stored: {type(error).__name__}.", reason="unstorable_output")
