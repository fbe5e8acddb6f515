"""Begin the runs of a message and have runners execute them.

Many runs are begun in one statement and settled in one statement; in between they are in runner processes. No thread
waits for a run, so a waiting run costs little more than the memory of its coroutine. When a run has ended,
`worker/settle/settle.py` continues, then `worker/settle/finish.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orcheo_dispatch.shared.database.apart import write_apart
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import LOCKED, STALE, UNKNOWN, NotBegun, Run
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import MessageResult
from orcheo_dispatch.worker.begin import REFUSED, UNAVAILABLE, Begun
from orcheo_dispatch.worker.execution import Execution, Stop
from orcheo_dispatch.worker.settle.aftermath import Aftermath
from orcheo_dispatch.worker.settle.endings import timeout_of

if TYPE_CHECKING:
    from orcheo_dispatch.worker.runtime import Runtime


def take(
    runtime: Runtime, claims: Sequence[Claim], *, returns: int | None = None, queue: str | None = None
) -> list[Execution]:
    """Begin as many of these runs as there is room for, have them executed, and return those that have begun.

    Claims without room go back to `queue`, from which they came, and so do claims whose rows are locked. Never raises
    because of a run or of Postgres: a claim that could not begin has a lease, and the dispatcher reconciles it once the
    lease has expired.
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
                    _say_not_begun(runtime, answer, some.since, unknown=unknown, back=back)
    finally:
        runtime.executions.add([], reserved=reserved)
    if unknown:
        runtime.strangers.put_back(unknown, returns, queue)
    if back:
        _hand_back(runtime, back, queue)
    return begun


def _execute(runtime: Runtime, some: Begun, reserved: int) -> tuple[list[Execution], int]:
    """Execute the runs that have begun; return them, and the room still reserved. A faulty run affects no other."""
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
            # Postgres answered so late that another worker may hold the run by now: settle if possible, never execute.
            execution.stop(Stop.LEASE_OVER)
            log.warning("lease_not_renewed", run_id=execution.claim.run_id, fence=execution.claim.fence)
        if execution.run.fault is not None:
            execution.refuse(execution.run.fault)
        else:
            executed.append(execution)
    if executed:
        runtime.runners.execute(executed)
    return begun, max(0, reserved - len(some.answers))


def _say_not_begun(
    runtime: Runtime, answer: NotBegun, since: float, *, unknown: list[Claim], back: list[Claim]
) -> None:
    if answer.reason == LOCKED:
        back.append(answer.claim)
        return
    result = _result_of(answer)
    runtime.metrics.message_taken(result)
    if answer.reason not in (STALE, UNKNOWN):
        # Anyone who can write to Redis can repeat the others without limit.
        runtime.traces.not_begun(answer.claim, result, since)
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
    # A stale message is a replay or arrived late; both are worth a warning.
    stale = not_begun.reason == STALE
    # Rate-limited, because anyone who can write to Redis can repeat such messages without limit.
    fields = runtime.said_stale.take() if stale else {}
    if fields is not None:
        claim, level = not_begun.claim, "WARNING" if stale else "INFO"
        log.log(level, "run_skipped", run_id=claim.run_id, fence=claim.fence, reason=not_begun.reason, **fields)


def _execution(runtime: Runtime, run: Run, started: float) -> Execution:
    runtime.metrics.message_taken("begun")
    runtime.metrics.was_queued(run.queued_for)
    if run.first:
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
        trace=runtime.traces.begun(run, started),
    )


def _hand_back(runtime: Runtime, claims: Sequence[Claim], queue: str | None) -> None:
    try:
        runtime.wire.hand_back(claims, queue=queue)
    except BrokerError as error:
        # Released runs are pending again, and are claimed again.
        runtime.metrics.broker_failed()
        parts = write_apart(claims, lambda some: runtime.store.release(some, reason="no_room"))
        released = sum(part.result or 0 for part in parts)
        log.warning("claims_not_handed_back", claims=len(claims), released=released, reason=str(error))
