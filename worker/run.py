"""What a worker does with the claims of a message: begin, execute, settle. Read from the top.

Runs begin together and are settled together, in one statement each; between the two they are in runner processes. No
thread waits for a run, so that a run which waits costs the memory of its coroutine and little more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.apart import write_apart
from shared.errors import BrokerError
from shared.ledger import Claim, Outcome
from shared.logs import describe, log
from shared.metrics import MessageResult
from shared.runs import LOCKED, STALE, UNKNOWN, Ending, NotBegun, Run
from worker.aftermath import Aftermath
from worker.beginning import REFUSED, UNAVAILABLE, Begun
from worker.endings import ending_of, timeout_of
from worker.ends import End
from worker.execution import Execution, How, Stop

if TYPE_CHECKING:
    from worker.runtime import Runtime


def take(runtime: Runtime, claims: Sequence[Claim], *, returns: int | None = None) -> list[Execution]:
    """Begin these runs, as far as there is room, and have them executed; return those that execute now.

    What there is no room for goes back to Redis, and so does what somebody holds the row of. Never raises on account
    of a run or of Postgres: what could not begin has a lease, and the dispatcher looks after it when that is over.
    """
    room = reserved = runtime.executions.reserve(len(claims))
    back = list(claims[room:])
    begun: list[Execution] = []
    unknown: list[Claim] = []
    try:
        for some in runtime.beginner.begin(claims[:room]):
            now, reserved = _execute(runtime, some, reserved)
            begun.extend(now)
            for answer in some.answers:
                if isinstance(answer, NotBegun):
                    _say_not_begun(runtime, answer, unknown=unknown, back=back)
    finally:
        runtime.executions.add([], reserved=reserved)
    if unknown:
        runtime.strangers.put_back(unknown, returns)
    if back:
        _hand_back(runtime, back)
    return begun


def _execute(runtime: Runtime, some: Begun, reserved: int) -> tuple[list[Execution], int]:
    """Execute what has begun; return it, and how much room is still reserved. One run costs no other its execution."""
    begun = []
    for answer in some.answers:
        if isinstance(answer, Run):
            try:
                begun.append(_execution(runtime, answer, some.since))
            except Exception as error:  # noqa: BLE001 - a fault of ours with one run; it is reaped
                log.error("begin_failed", run_id=answer.run_id, fence=answer.fence, **describe(error))
    runtime.executions.add(begun, reserved=min(reserved, len(some.answers)))
    late = time.monotonic() - some.since >= runtime.settings.worker_lease
    executed = []
    for execution in begun:
        if late:
            # Postgres answered so late that the run may be another's by now: settled, if it can be, not executed.
            execution.stop(Stop.LEASE_OVER)
            log.warning("lease_not_renewed", run_id=execution.claim.run_id, fence=execution.claim.fence)
        if execution.run.fault is not None:
            execution.refuse(execution.run.fault)
        else:
            executed.append(execution)
    if executed:
        runtime.runners.execute(executed)
    return begun, max(0, reserved - len(some.answers))


def _say_not_begun(runtime: Runtime, answer: NotBegun, *, unknown: list[Claim], back: list[Claim]) -> None:
    if answer.reason == LOCKED:
        back.append(answer.claim)
        return
    runtime.metrics.message_taken(_result_of(answer))
    if answer.reason == UNKNOWN:
        unknown.append(answer.claim)
    elif answer.reason != UNAVAILABLE:
        _skip(runtime, answer)


def _result_of(not_begun: NotBegun) -> MessageResult:
    if not_begun.rejected:
        return "rejected"
    match not_begun.reason:
        case "stale":
            return "stale"
        case "unknown":
            return "unknown"
        case "refused":
            return "refused"
        case "unavailable":
            return "database_away"
    return "skipped"


def _skip(runtime: Runtime, not_begun: NotBegun) -> None:
    claim = not_begun.claim
    if not_begun.rejected:
        log.warning("run_rejected", run_id=claim.run_id, fence=claim.fence, reason=not_begun.reason)
    elif not_begun.reason != REFUSED:
        _say_skipped(runtime, not_begun)
    if not_begun.slot_due_in is not None:
        runtime.aftermaths.put(Aftermath(claim.run_id, not_begun.slot_due_in))


def _say_skipped(runtime: Runtime, not_begun: NotBegun) -> None:
    # A message that was answered before is a replay, or came late; both deserve a look.
    stale = not_begun.reason == STALE
    # Anybody who can write to Redis can repeat them without end.
    fields = runtime.said_stale.take() if stale else {}
    if fields is not None:
        claim, level = not_begun.claim, "WARNING" if stale else "INFO"
        log.log(level, "run_skipped", run_id=claim.run_id, fence=claim.fence, reason=not_begun.reason, **fields)


def _execution(runtime: Runtime, run: Run, started: float) -> Execution:
    runtime.metrics.message_taken("begun")
    runtime.metrics.was_queued(run.queued_for)
    if run.attempt == 1:
        runtime.metrics.was_pending(run.pending_for)
    runtime.metrics.run_begun()
    timeout = timeout_of(run, runtime.settings.run_timeout)
    log.info("run_begun", run_id=run.run_id, workflow_id=run.workflow_id, fence=run.fence, attempt=run.attempt)
    return Execution(
        run,
        begun_at=started,
        timeout=timeout,
        on_stop=runtime.runners.stop_run,
        on_ignored=runtime.runners.end_run,
        on_end=runtime.settler.put,
    )


def _hand_back(runtime: Runtime, claims: Sequence[Claim]) -> None:
    try:
        runtime.wire.hand_back(claims)
    except BrokerError as error:
        # They are pending again, and claimed anew.
        runtime.metrics.broker_failed()
        parts = write_apart(claims, lambda some: runtime.store.release(some, reason="no_room"))
        released = sum(part.result or 0 for part in parts)
        log.warning("claims_not_handed_back", claims=len(claims), released=released, reason=str(error))


# --- and when they have ended


def ending_for(runtime: Runtime, execution: Execution) -> Ending | None:
    """Return what is to be written of an execution that has ended."""
    assert execution.result is not None
    return ending_of(runtime.settings, execution.run, execution.result, execution.timeout)


def finish(runtime: Runtime, ends: list[End]) -> None:
    """Do what is left to do for runs that are settled: slots, traces, metrics, a line in the log."""
    runtime.executions.remove(end.execution for end in ends)
    for end in ends:
        try:
            _finish(runtime, end)
        except Exception as error:  # noqa: BLE001 - a fault of ours with one run; the others are told of as well
            log.error("finish_failed", run_id=end.execution.claim.run_id, **describe(error))
        finally:
            end.execution.settled.set()


def _finish(runtime: Runtime, end: End) -> None:
    settled = end.settled
    slot_due_in = settled.slot_due_in if settled is not None else None
    requeued = settled is not None and settled.outcome is Outcome.REQUEUED
    open_trace = _has_open_trace(end)
    if slot_due_in is not None or requeued or open_trace:
        runtime.aftermaths.put(
            Aftermath(end.execution.claim.run_id, slot_due_in, trace_open=open_trace, requeued=requeued)
        )
    runtime.metrics.run_ended()
    _say_ended(runtime, end)


def abandon(runtime: Runtime, executions: list[Execution]) -> None:
    """Let go of runs that could not be settled: no heartbeat keeps their leases, so they are reaped."""
    runtime.executions.remove(executions)
    for execution in executions:
        execution.settled.set()


def _has_open_trace(end: End) -> bool:
    """Tell whether the executor did not get to close its trace, or was told to keep off, and the run has ended."""
    result = end.execution.result
    assert result is not None
    ended = end.settled is not None and end.settled.ended
    left = result.how in (How.CRASHED, How.SUSPECTED, How.LOST) or result.ignored_stop or result.stop is Stop.LEASE_OVER
    return ended and left


def _say_ended(runtime: Runtime, end: End) -> None:
    execution, settled = end.execution, end.settled
    run, claim, result = execution.run, execution.claim, execution.result
    if settled is None:
        runtime.metrics.settle_was_stale()
        reason = "not ours" if end.ending is None else "stale"
        log.warning("run_not_settled", run_id=claim.run_id, fence=claim.fence, reason=reason)
        return
    seconds = time.monotonic() - execution.begun_at
    runtime.metrics.run_settled(settled.outcome, run.triggered_by, seconds)
    assert result is not None
    runtime.failing.note(run, result)
    told = {"error": result.kind, "at": result.at} if result.kind is not None else {}
    log.info(
        "run_settled",
        run_id=claim.run_id,
        workflow_id=run.workflow_id,
        fence=claim.fence,
        outcome=settled.outcome.value,
        seconds=round(seconds, 3),
        **told,
    )
