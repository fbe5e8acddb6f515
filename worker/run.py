"""What a worker does with a message: begin, execute, settle. Read from the top."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping

from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from shared.errors import BrokerError, DatabaseError
from shared.ledger import Claim, Outcome
from shared.logs import describe, log
from shared.redaction import redact
from shared.settings import LostRuns
from shared.store import STALE, Ending, NotBegun, Run, Settled
from worker.execution import Execution, Result, Stop
from worker.executor import RunRejectedError, Stopped
from worker.payload import storable, storable_text
from worker.runtime import Runtime

TIMEOUT_KEY = "run_timeout_seconds"
"""Where a workflow's `runnable_config.metadata` has this, its runs may take no longer."""
_MAX_ERROR_CHARACTERS = 20_000


def execute_run(runtime: Runtime, claim: Claim) -> Outcome | None:
    """Begin, execute and settle one run; return its outcome, or None where there was nothing to do.

    Never raises on account of the run. Raises `DatabaseError` only from `begin`, when nothing has happened yet:
    the claim's lease then has the dispatcher look after it.
    """
    started = time.monotonic()
    run = runtime.store.begin(claim, worker_id=runtime.process.id, lease=runtime.settings.worker_lease)
    if isinstance(run, NotBegun):
        runtime.metrics.message_taken("stale" if run.reason == STALE else "skipped")
        _skip(runtime, run)
        return None
    runtime.metrics.message_taken("begun")
    runtime.metrics.was_queued(run.queued_for)
    if run.attempt == 1:
        runtime.metrics.was_pending(run.pending_for)
    timeout = _timeout_of(run, runtime.settings.run_timeout)
    log.info("run_begun", run_id=claim.run_id, workflow_id=run.workflow_id, fence=claim.fence, attempt=run.attempt)

    def explain(stop: Stop) -> Stopped:
        return _explain(stop, _ending_of_stopped(runtime, run, stop, timeout))

    execution = Execution(run, runtime.executor, runtime.loop, explain, begun_at=started)
    if time.monotonic() - started >= runtime.settings.worker_lease:
        # Postgres answered so late that the run may be another's by now: it is settled, if it can be, and not executed.
        execution.stop(Stop.LEASE_OVER)
        log.warning("lease_not_renewed", run_id=claim.run_id, fence=claim.fence)
    runtime.executions.add(execution)
    with runtime.metrics.executing():
        settled, ending, result = _see_through(runtime, execution, timeout)

    if settled is None:
        runtime.metrics.settle_was_stale()
        log.warning("run_not_settled", run_id=claim.run_id, fence=claim.fence, reason="stale" if ending else "not ours")
        return None
    if settled.slot_due_in is not None:
        _give_back_slot(runtime, claim.run_id, settled.slot_due_in)
    if settled.outcome is Outcome.REQUEUED:
        runtime.wake_dispatchers()
    if settled.ended and (result.ignored_stop or result.stop is Stop.LEASE_OVER):
        # Its executor did not get to it, or was told to keep off.
        runtime.store.close_traces([claim.run_id])
    runtime.metrics.run_settled(settled.outcome, run.triggered_by, time.monotonic() - started)
    log.info(
        "run_settled",
        run_id=claim.run_id,
        workflow_id=run.workflow_id,
        fence=claim.fence,
        outcome=settled.outcome.value,
        seconds=round(time.monotonic() - started, 3),
        **(describe(result.error) if result.error is not None else {}),
    )
    return settled.outcome


def _see_through(
    runtime: Runtime, execution: Execution, timeout: float
) -> tuple[Settled | None, Ending | None, Result]:
    """Execute a run that has begun, and settle it; return also what was to be settled, and how the coroutine ended."""
    run, claim = execution.run, execution.claim
    try:
        result = execution.wait(timeout=timeout, grace=runtime.settings.cancel_grace)
        if result.ignored_stop:
            log.warning("run_ignored_stop", run_id=claim.run_id, workflow_id=run.workflow_id, fence=claim.fence)
        ending = _ending_of(runtime, run, result, timeout)
        execution.settling = True
        return (_settle(runtime, claim, ending) if ending is not None else None), ending, result
    finally:
        runtime.executions.remove(execution)


def _timeout_of(run: Run, limit: float) -> float:
    """Return the seconds that this run may take: the setting, or less where its own configuration says so."""
    metadata = run.runnable_config.get("metadata")
    wanted = metadata.get(TIMEOUT_KEY) if isinstance(metadata, Mapping) else None
    if wanted is None:
        return limit
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < math.inf:
        log.warning("run_timeout_ignored", run_id=run.run_id, workflow_id=run.workflow_id, takes="seconds above 0")
        return limit
    return min(limit, float(wanted))


def _skip(runtime: Runtime, not_begun: NotBegun) -> None:
    claim = not_begun.claim
    # A message that was answered before is a replay, or came late; both deserve a look.
    level = "WARNING" if not_begun.reason == STALE else "INFO"
    log.log(level, "run_skipped", run_id=claim.run_id, fence=claim.fence, reason=not_begun.reason)
    if not_begun.slot_due_in is not None:
        _give_back_slot(runtime, claim.run_id, not_begun.slot_due_in)


def _ending_of(runtime: Runtime, run: Run, result: Result, timeout: float) -> Ending | None:
    """Turn how the coroutine ended into how the run ends; None where that is not this worker's to say."""
    if result.stop is not None:
        return _ending_of_stopped(runtime, run, result.stop, timeout)
    if isinstance(result.error, RunRejectedError):
        return Ending.cancelled(redact(storable_text(str(result.error))))
    if result.error is not None:
        return Ending.failed(_error_text(result.error), reason=type(result.error).__name__)
    try:
        output = json.dumps(storable(dict(result.output or {})), allow_nan=False)
    except Exception as error:  # noqa: BLE001 - an object may do anything while it is being written
        return _unstorable(error)
    return Ending.succeeded(output)


def _ending_of_stopped(runtime: Runtime, run: Run, stop: Stop, timeout: float) -> Ending | None:
    settings = runtime.settings
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


def _explain(stop: Stop, ending: Ending | None) -> Stopped:
    """Tell the executor what to make of its cancellation."""
    if ending is None or stop is Stop.LEASE_OVER:
        return Stopped(None, "The run may be another worker's by now.")
    return Stopped(ending.status, ending.why)


def _unstorable(error: BaseException) -> Ending:
    return Ending.failed(f"The run's output cannot be stored: {type(error).__name__}.", reason="unstorable_output")


def _error_text(error: BaseException) -> str:
    try:
        text = redact(storable_text(str(error))) or type(error).__name__
    except Exception:  # noqa: BLE001 - the workflow's own class may fail at its text
        text = type(error).__name__
    return text if len(text) <= _MAX_ERROR_CHARACTERS else text[:_MAX_ERROR_CHARACTERS] + " ..."


def _settle(runtime: Runtime, claim: Claim, ending: Ending) -> Settled | None:
    """Write the ending, for as long as it takes: a finished run keeps its outcome while Postgres is away."""
    try:
        return _when_database_is_back(runtime, claim, ending)
    except DBAPIError as error:
        log.error("output_refused", run_id=claim.run_id, fence=claim.fence, **describe(error.orig))
        return _when_database_is_back(runtime, claim, _unstorable(error.orig or error))


def _when_database_is_back(runtime: Runtime, claim: Claim, ending: Ending) -> Settled | None:
    def say(state: RetryCallState) -> None:
        runtime.metrics.database_failed()
        if state.attempt_number == 1:
            log.warning("settle_waits_for_database", run_id=claim.run_id, fence=claim.fence)

    retrying = Retrying(
        retry=retry_if_exception_type(DatabaseError),
        wait=wait_exponential_jitter(initial=0.1, max=5.0, jitter=0.5),
        before_sleep=say,
        reraise=True,
    )
    return retrying(runtime.store.settle, claim, ending)


def _give_back_slot(runtime: Runtime, run_id: str, workspace_id: str) -> None:
    try:
        runtime.slots.give_back(run_id, workspace_id)
    except BrokerError as error:
        # It stays due in the ledger, and the dispatcher gives it back.
        runtime.metrics.broker_failed()
        log.warning("slot_not_returned", run_id=run_id, reason=str(error))
    else:
        runtime.heartbeat.note_slot_returned(run_id)
