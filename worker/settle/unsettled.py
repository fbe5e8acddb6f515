"""Settle ends that could not be written together: in parts, then one by one, until each is decided.

A trigger, a constraint or a policy that refuses the end of one run, with any SQLSTATE, blocks no other run: its batch
is divided (`shared/database/apart.py`), and the run that fails by itself is retried by itself. If other runs can be
written meanwhile, the run is at fault and not the server. Then it fails with the reason; if Postgres refuses that as
well, it is abandoned: its lease expires, and it is reaped.

Bounds: one bad run delays the others in its batch by one statement timeout per division (by milliseconds if Postgres
refuses at once). Runs in other batches wait only for the first attempt at the batch, which ends after `BATCH_SECONDS`
and some more for many bytes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from orcheo_dispatch.shared.database.apart import write_apart
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of_state
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.runs import Ending
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.lasting import Inbox, LastingThread
from orcheo_dispatch.worker.execution import Execution
from orcheo_dispatch.worker.settle.endings import unstorable
from orcheo_dispatch.worker.settle.ends import End, Written

PART_SECONDS = 3.0
"""Timeout of the first attempt at a part of a batch, or at a single run (seconds)."""
_MAX_SECONDS = 10.0
_PATIENCE_SECONDS = 10.0
_PATIENCE_ATTEMPTS = 3
_LOCK_PATIENCE_SECONDS = 60.0
"""A trigger may wait for a lock that another transaction holds for a while."""
_SCARCE_PATIENCE_SECONDS = 300.0
"""How long no run is blamed while no other run can be settled (seconds): a full disk may refuse only large outputs."""
_REFUSED_PATIENCE_SECONDS = 3.0
_IDLE_SECONDS = 1.0
_MOST_BATCHES = 1000
_MAX_PAUSE_SECONDS = 2.0
_UNSTORABLE_CLASSES = {"22", "54"}
_SCARCE_CLASSES = {"53", "58"}

Write = Callable[[Sequence[End], float], Written]


@dataclass(frozen=True, slots=True, order=True)
class _Suspect:
    """A run whose end Postgres refused when it was written by itself."""

    due: float
    number: int
    """Breaks ties between runs that are due at the same time: the first one added comes first."""
    end: End
    since: float
    attempts: int = 1
    failing: bool = False
    """Whether its own ending was given up, and a failure that says so is written instead."""


class Unsettled:
    """Settle, on two threads, the ends that a batch could not settle.

    `write` writes some endings in one transaction, within this many seconds. `finish` receives the settled ends,
    `later` those of runs whose rows are locked, and `abandon` the runs that are given up.
    """

    def __init__(
        self,
        write: Write,
        metrics: WorkerMetrics,
        *,
        finish: Callable[[list[End]], None],
        later: Callable[[Iterable[End]], None],
        abandon: Callable[[list[Execution]], None],
    ) -> None:
        self._write = write
        self._metrics = metrics
        self._finish = finish
        self._later = later
        self._abandon = abandon
        self._batches: Inbox[Sequence[End]] = Inbox()
        self._found: Inbox[_Suspect] = Inbox()
        self._suspects: list[_Suspect] = []
        self._numbers = itertools.count()
        self._written_at = float("-inf")
        self._waits = 0
        self._dividing = LastingThread("settle-apart", self._divide, idle=self._batches.empty, inbox=self._batches)
        self._repeating = LastingThread(
            "settle-again", self._repeat, idle=lambda: self._found.empty() and not self._suspects, inbox=self._found
        )

    def start(self) -> None:
        """Start the threads."""
        self._dividing.start()
        self._repeating.start()

    def stop(self) -> None:
        """Settle the remaining runs, then stop."""
        self._dividing.stop()
        self._repeating.stop()

    @property
    def makes_progress(self) -> bool:
        """Whether both threads make progress."""
        return self._dividing.makes_progress and self._repeating.makes_progress

    def put(self, ends: Sequence[End]) -> None:
        """Queue these ends, at least one of which could not be written."""
        self._batches.put(ends)

    def note_written(self) -> None:
        """Record that Postgres has just settled a run, and so is available."""
        self._written_at = time.monotonic()

    # --- in parts

    def _divide(self) -> None:
        batch = [end for ends in self._batches.take(_IDLE_SECONDS, most=_MOST_BATCHES) for end in ends]
        if not batch:
            return
        left = {id(end): end for end in batch}
        try:
            for part in write_apart(batch, self._write_part):
                for end in part.items:
                    left.pop(id(end), None)
                if part.result is not None:
                    self._take(part.result)
                elif part.one and part.error is not None:
                    self._suspect(part.items[0], part.error)
                else:
                    self._wait_with(part.items, part.error)
        except BaseException as error:
            self._give_up(list(left.values()), error)
            raise

    def _write_part(self, ends: Sequence[End]) -> Written:
        self._dividing.note_progress()
        return self._write(ends, PART_SECONDS)

    def _wait_with(self, ends: Sequence[End], error: DatabaseError | None) -> None:
        """Queue again what could not be written because the server is unavailable; the outcomes are kept."""
        self._metrics.database_failed()
        if self._waits == 0:
            for end in ends:
                claim = end.execution.claim
                reason = error.what if error is not None else "?"
                log.warning("settle_waits_for_database", run_id=claim.run_id, fence=claim.fence, reason=reason)
        self._waits += 1
        self._dividing.pause(min(_MAX_PAUSE_SECONDS, 0.1 * 2 ** min(self._waits, 10)))
        self._batches.put(ends)

    # --- one by one

    def _suspect(self, end: End, error: DatabaseError) -> None:
        """Judge a run whose end failed when written by itself, although the statement without runs succeeded."""
        now = time.monotonic()
        suspect = _Suspect(now, self._next_number(), end, since=now)
        self._judge(suspect, error, available=True)

    def _repeat(self) -> None:
        now = time.monotonic()
        wait = min(_IDLE_SECONDS, max(0.0, self._suspects[0].due - now)) if self._suspects else _IDLE_SECONDS
        for found in self._found.take(wait, most=_MOST_BATCHES):
            heapq.heappush(self._suspects, found)
        if not self._suspects or self._suspects[0].due > time.monotonic():
            return
        suspect = heapq.heappop(self._suspects)
        try:
            self._try(suspect)
        except BaseException as error:
            self._give_up([suspect.end], error)
            raise

    def _try(self, suspect: _Suspect) -> None:
        try:
            written = self._write([suspect.end], min(_MAX_SECONDS, PART_SECONDS * 2**suspect.attempts))
        except DatabaseError as error:
            if not error.answered:
                self._metrics.database_failed()
                # No run's patience runs out while the server is unavailable.
                self._again(replace(suspect, since=time.monotonic()))
                return
            self._judge(replace(suspect, attempts=suspect.attempts + 1), error, available=False)
        else:
            self._take(written)

    def _judge(self, suspect: _Suspect, error: DatabaseError, *, available: bool) -> None:
        """Decide whether to retry, to fail the run instead, or to abandon it."""
        if not self._is_bad(suspect, error, available=available):
            self._again(suspect)
            return
        claim = suspect.end.execution.claim
        fields = {"run_id": claim.run_id, "fence": claim.fence, "error": error.what}
        if suspect.failing:
            log.error("run_abandoned", **fields)
            self._abandon([suspect.end.execution])
            return
        if (error.sqlstate or "")[:2] in _UNSTORABLE_CLASSES:
            log.error("output_refused", **fields)
            ending = unstorable(getattr(error.__cause__, "orig", None) or error)
        else:
            log.error("end_refused", **fields)
            ending = Ending.failed(f"Postgres refused the end of this run: {error.what}.", reason="end_refused")
        now = time.monotonic()
        self._found.put(
            _Suspect(now, self._next_number(), End(suspect.end.execution, ending), since=now, attempts=0, failing=True)
        )

    def _is_bad(self, suspect: _Suspect, error: DatabaseError, *, available: bool) -> bool:
        sqlstate = error.sqlstate or ""
        failure, waited = failure_of_state(sqlstate), time.monotonic() - suspect.since
        if failure is not Failure.REFUSED:
            if suspect.failing:
                patience = _REFUSED_PATIENCE_SECONDS
            elif failure is Failure.LOCKED:
                patience = _LOCK_PATIENCE_SECONDS
            else:
                patience = _PATIENCE_SECONDS
            if waited < patience or suspect.attempts < _PATIENCE_ATTEMPTS:
                return False
            if self._written_at > suspect.since:
                return True
            if sqlstate[:2] in _SCARCE_CLASSES:
                return waited >= _SCARCE_PATIENCE_SECONDS
        return available or self._written_at > suspect.since or self._is_available()

    def _is_available(self) -> bool:
        """Return whether Postgres accepts the same statement without runs."""
        try:
            self._write([], PART_SECONDS)
        except DatabaseError:
            return False
        return True

    def _again(self, suspect: _Suspect) -> None:
        pause = min(_MAX_PAUSE_SECONDS, 0.1 * 2 ** min(suspect.attempts, 10))
        self._found.put(replace(suspect, due=time.monotonic() + pause))

    def _next_number(self) -> int:
        return next(self._numbers)

    # --- results

    def _take(self, written: Written) -> None:
        if written.done:
            self._waits = 0
            self.note_written()
            self._finish(written.done)
        if written.locked:
            self._later(written.locked)

    def _give_up(self, ends: list[End], error: BaseException) -> None:
        for end in ends:
            # One by one, ignoring errors: heartbeats would keep each run that is not abandoned alive forever.
            with contextlib.suppress(BaseException):
                self._abandon([end.execution])
        if ends:
            log.error("settle_failed", runs=len(ends), **describe(error))
