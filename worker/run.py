"""What a worker does with the claims of a message: begin, execute, settle. Read from the top.

Runs begin together and are settled together, in one statement each; between the two they are in runner processes. No
thread waits for a run, so that a run which waits costs the memory of its coroutine and little more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.errors import BrokerError, DatabaseError, RowLockedError
from shared.ledger import Claim, Outcome
from shared.logs import log
from shared.metrics import MessageResult
from shared.runs import STALE, UNKNOWN, Ending, NotBegun, Run
from worker.endings import ending_of, timeout_of
from worker.execution import Execution, How, Stop
from worker.settling import End

if TYPE_CHECKING:
    from worker.runtime import Runtime

_LOCK_SECONDS = 1.0
"""The API holds a run's row for milliseconds. Whoever holds one for longer holds up that run alone."""


def take(runtime: Runtime, claims: Sequence[Claim], *, returns: int | None = None) -> list[Execution]:
    """Begin these runs, as far as there is room, and have them executed; return those that execute now.

    What there is no room for goes back to Redis, and so does what somebody holds the row of. Never raises on account
    of a run or of Postgres: what could not begin has a lease, and the dispatcher looks after it when that is over.
    """
    room = runtime.executions.reserve(len(claims))
    taken, rest = claims[:room], claims[room:]
    begun: list[Execution] = []
    locked = False
    try:
        begun = _begin(runtime, taken, returns)
    except RowLockedError:
        locked = True
    finally:
        runtime.executions.add(begun, reserved=room)
    if begun:
        runtime.runners.execute(begun)
    if locked and len(taken) > 1:
        # One of them holds up the others: each for itself.
        return [
            *begun,
            *(one for claim in taken for one in take(runtime, [claim], returns=returns)),
            *take(runtime, rest, returns=returns),
        ]
    if locked or rest:
        _hand_back(runtime, [*taken, *rest] if locked else rest)
    return begun


def _begin(runtime: Runtime, claims: Sequence[Claim], returns: int | None) -> list[Execution]:
    started = time.monotonic()
    begun = [_execution(runtime, run, started) for run in _begin_in_ledger(runtime, claims, returns)]
    if begun and time.monotonic() - started >= runtime.settings.worker_lease:
        # Postgres answered so late that the runs may be others' by now: they are settled, if they can be, not executed.
        for execution in begun:
            execution.stop(Stop.LEASE_OVER)
            log.warning("lease_not_renewed", run_id=execution.claim.run_id, fence=execution.claim.fence)
    return begun


def _begin_in_ledger(runtime: Runtime, claims: Sequence[Claim], returns: int | None) -> list[Run]:
    if not claims:
        return []
    settings, worker_id = runtime.settings, runtime.process.id
    try:
        answers = runtime.store.begin_all(
            claims, worker_id=worker_id, lease=settings.worker_lease, lock_timeout=_LOCK_SECONDS
        )
    except RowLockedError:
        raise
    except DatabaseError as error:
        runtime.metrics.database_failed()
        for claim in claims:
            runtime.metrics.message_taken("database_away")
            log.warning("run_not_begun", run_id=claim.run_id, fence=claim.fence, reason=str(error))
        return []
    not_begun = [answer for answer in answers if isinstance(answer, NotBegun)]
    unknown = [answer.claim for answer in not_begun if answer.reason == UNKNOWN]
    for answer in not_begun:
        runtime.metrics.message_taken(_result_of(answer))
        if answer.reason != UNKNOWN:
            _skip(runtime, answer)
    if unknown:
        runtime.strangers.put_back(unknown, returns)
    return [answer for answer in answers if isinstance(answer, Run)]


def _result_of(not_begun: NotBegun) -> MessageResult:
    if not_begun.rejected:
        return "rejected"
    match not_begun.reason:
        case "stale":
            return "stale"
        case "unknown":
            return "unknown"
    return "skipped"


def _skip(runtime: Runtime, not_begun: NotBegun) -> None:
    claim = not_begun.claim
    if not_begun.rejected:
        log.warning("run_rejected", run_id=claim.run_id, fence=claim.fence, reason=not_begun.reason)
    else:
        _say_skipped(runtime, not_begun)
    if not_begun.slot_due_in is not None:
        _give_back_slots(runtime, [(claim.run_id, not_begun.slot_due_in)])


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
        try:
            released = runtime.store.release(claims, reason="no_room")
        except DatabaseError:
            released = 0
        log.warning("claims_not_handed_back", claims=len(claims), released=released, reason=str(error))


# --- and when they have ended


def ending_for(runtime: Runtime, execution: Execution) -> Ending | None:
    """Return what is to be written of an execution that has ended."""
    assert execution.result is not None
    return ending_of(runtime.settings, execution.run, execution.result, execution.timeout)


def finish(runtime: Runtime, ends: list[End]) -> None:
    """Do what is left to do for runs that are settled: slots, traces, metrics, a line in the log."""
    runtime.executions.remove(end.execution for end in ends)
    slots = [
        (end.execution.claim.run_id, end.settled.slot_due_in)
        for end in ends
        if end.settled is not None and end.settled.slot_due_in is not None
    ]
    if slots:
        _give_back_slots(runtime, slots)
    if any(end.settled is not None and end.settled.outcome is Outcome.REQUEUED for end in ends):
        runtime.wire.wake_dispatchers()
    abandoned = [end.execution.claim.run_id for end in ends if _has_open_trace(end)]
    if abandoned:
        runtime.store.close_traces(abandoned)
    for end in ends:
        runtime.metrics.run_ended()
        _say_ended(runtime, end)
    for end in ends:
        end.execution.settled.set()


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


def _give_back_slots(runtime: Runtime, slots: Sequence[tuple[str, str]]) -> None:
    try:
        runtime.slots.give_back_all(slots)
    except BrokerError as error:
        # They stay due in the ledger, and the dispatcher gives them back.
        runtime.metrics.broker_failed()
        for run_id, _ in slots:
            log.warning("slot_not_returned", run_id=run_id, reason=str(error))
    else:
        runtime.heartbeat.note_slots_returned(run_id for run_id, _ in slots)
