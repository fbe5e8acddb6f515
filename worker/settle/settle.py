"""Settle ended runs: all waiting runs in one statement, or in parts if that fails.

Runs that end while one statement is being executed share the next one and its commit ("group commit"; D. DeWitt et al.,
"Implementation techniques for main memory database systems", 1984). So a single run never waits for others.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial

from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.lasting import Inbox, LastingThread
from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.settle.ends import End, write
from orcheo_dispatch.worker.settle.unsettled import Unsettled

__all__ = ["End", "Settler"]

_MAX_BATCH = 500
BATCH_SECONDS = 5.0
"""Timeout of a batch's statement (seconds), plus additional time for large outputs: a run delays the next batch by no
more than that."""
_IDLE_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.005, 1.0
"""Delay before a locked row is retried (seconds): the API and our dispatchers hold locks for milliseconds."""
_OUTAGE_PAUSE_SECONDS = 5.0


class Settler:
    """Settle executions as they end, on threads of its own that only `stop` ends.

    `ending_of` returns the ending to write for an execution, and `finish` does the remaining work once it is written.
    If either raises, because of a bug, `abandon` removes that run: its lease expires, and it is reaped.

    A run whose row is locked is skipped and retried for as long as it is locked, first after 5 ms, later once per
    second. It delays no other run. Ends that Postgres refuses are settled apart; see `worker/settle/unsettled.py`.
    """

    def __init__(
        self,
        store: Store,
        metrics: WorkerMetrics,
        *,
        ending_of: Callable[[Execution], Ending | None],
        finish: Callable[[list[End]], None],
        abandon: Callable[[list[Execution]], None],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._ending_of = ending_of
        self._finish = finish
        self._abandon = abandon
        self._ended: Inbox[Execution | End] = Inbox()
        self._held: list[tuple[float, int, End]] = []
        self._pauses: dict[Claim, float] = {}
        self._numbers = itertools.count()
        self._unsettled = Unsettled(
            partial(write, store), metrics, finish=self._finish_each, later=self._try_later, abandon=abandon
        )
        self._thread = LastingThread(
            "settle", self._turn, idle=lambda: self._ended.empty() and not self._held, inbox=self._ended
        )

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self._unsettled.start()

    def put(self, execution: Execution) -> None:
        """Queue this execution to be settled; may be called from any thread."""
        self._ended.put(execution)

    def stop(self) -> None:
        """Settle the remaining runs, then stop."""
        self._thread.stop()
        self._unsettled.stop()

    @property
    def makes_progress(self) -> bool:
        """Whether batches begin when they are due, regardless of whether Postgres accepts them."""
        return self._thread.makes_progress and self._unsettled.makes_progress

    @property
    def turned_at(self) -> float:
        """`time.monotonic()` of the last attempt to write a batch, or of the last check for one."""
        return self._thread.turned_at

    def _turn(self) -> None:
        batch = self._next_batch()
        left = list(batch)
        try:
            ends = [end for each in batch if (end := self._end_of(each)) is not None]
            theirs = [end for end in ends if end.ending is None]
            if theirs:
                self._finish_each(theirs)
            left = [end for end in ends if end.ending is not None]
            if left:
                self._settle([end for end in ends if end.ending is not None])
        except BaseException as error:
            self._give_up([each.execution if isinstance(each, End) else each for each in left], error)
            raise

    def _next_batch(self) -> list[Execution | End]:
        """Wait until a run ends or the retry of a locked row is due; return as many as fit into one statement."""
        now = time.monotonic()
        wait = min(_IDLE_SECONDS, max(0.0, self._held[0][0] - now)) if self._held else _IDLE_SECONDS
        batch = self._ended.take(wait, most=_MAX_BATCH)
        now = time.monotonic()
        while self._held and self._held[0][0] <= now and len(batch) < _MAX_BATCH:
            batch.append(heapq.heappop(self._held)[2])
        return batch

    def _end_of(self, each: Execution | End) -> End | None:
        if isinstance(each, End):
            return each
        try:
            return End(each, self._ending_of(each))
        except BaseException as error:  # noqa: BLE001 - a fault of ours with one run must not cost the others their ends
            self._give_up([each], error)
            return None

    def _settle(self, ends: list[End]) -> None:
        """Write these endings, however long it takes: outcomes are kept while Postgres is unavailable."""
        attempts = 0
        while True:
            self._thread.note_progress()
            try:
                written = write(self._store, ends, BATCH_SECONDS)
                break
            except DatabaseError as error:
                if error.answered:
                    self._unsettled.put(ends)
                    return
                self._metrics.database_failed()
                if attempts == 0:
                    for end in ends:
                        claim = end.execution.claim
                        log.warning(
                            "settle_waits_for_database", run_id=claim.run_id, fence=claim.fence, reason=error.what
                        )
                attempts += 1
                time.sleep(min(_OUTAGE_PAUSE_SECONDS, 0.1 * 2 ** min(attempts, 10)))
        if written.done:
            self._unsettled.note_written()
            self._finish_each(written.done)
        if written.locked:
            self._hold(written.locked)

    def _try_later(self, ends: Iterable[End]) -> None:
        for end in ends:
            self._ended.put(end)

    def _hold(self, ends: list[End]) -> None:
        for end in ends:
            pause = self._pauses.get(end.execution.claim, _FIRST_PAUSE_SECONDS)
            self._pauses[end.execution.claim] = min(_MAX_PAUSE_SECONDS, 2 * pause)
            heapq.heappush(self._held, (time.monotonic() + pause, next(self._numbers), end))

    def _finish_each(self, ends: list[End]) -> None:
        for end in ends:
            self._pauses.pop(end.execution.claim, None)
        try:
            self._finish(ends)
        except BaseException as error:  # noqa: BLE001 - as above
            self._give_up([end.execution for end in ends], error)

    def _give_up(self, executions: list[Execution], error: BaseException) -> None:
        for execution in executions:
            # One by one, ignoring errors: heartbeats would keep each run that is not abandoned alive forever.
            with contextlib.suppress(BaseException):
                self._abandon([execution])
            self._pauses.pop(execution.claim, None)
        if executions:
            log.error("settle_failed", runs=len(executions), **describe(error))
