"""Settle what has ended: all that waits in one statement, one after the other where that does not work.

As many runs as end while one statement is under way share the next one and its commit ("group commit"; D. DeWitt et
al., "Implementation techniques for main memory database systems", 1984). So a lone run waits for nobody.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    wait_exponential_jitter,
    wait_random,
)

from shared.errors import DatabaseError, RefusedError, RowLockedError
from shared.ledger import Claim
from shared.logs import describe, log
from shared.metrics import WorkerMetrics
from shared.runs import Ending, Settled
from shared.store import Store
from worker.endings import unstorable
from worker.execution import Execution

_MAX_BATCH = 500
_LOCK_SECONDS = 1.0
"""The API holds a run's row for milliseconds. Whoever holds one for longer holds up that run alone."""


@dataclass(frozen=True, slots=True)
class End:
    """An execution that has ended, and what is to be written of it."""

    execution: Execution
    ending: Ending | None
    """None where that is not this worker's to say."""
    settled: Settled | None = None
    """None where nothing was changed: the run is another's by now."""


class Settler:
    """Settles executions as they end, on a thread of its own.

    `ending_of` says what is to be written of one, and `finish` does what is left to do when it is written. Should
    either fail, by a fault of ours, `abandon` lets go of the runs: their leases run out, and they are reaped.
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
        self._ended: queue.SimpleQueue[Execution | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        """Settle from now on."""
        self._thread.start()

    def put(self, execution: Execution) -> None:
        """Have this execution settled, from any thread."""
        self._ended.put(execution)

    def stop(self) -> None:
        """Settle what is left, and end."""
        self._ended.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch = [self._ended.get()]
            while len(batch) < _MAX_BATCH and not self._ended.empty():
                batch.append(self._ended.get())
            stopping = None in batch
            executions = [execution for execution in batch if execution is not None]
            with self._abandoning(executions):
                self._settle(executions)

    @contextmanager
    def _abandoning(self, executions: list[Execution]) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a fault of ours with some runs must not cost all others their ends
            log.error("settle_failed", runs=len(executions), **describe(error))
            self._abandon(executions)

    def _settle(self, executions: list[Execution]) -> None:
        ends = [End(execution, self._ending_of(execution)) for execution in executions]
        theirs = [end for end in ends if end.ending is None]
        if theirs:
            self._finish(theirs)
        ours = [end for end in ends if end.ending is not None]
        if not ours:
            return
        try:
            self._finish(self._write(ours, lock_timeout=_LOCK_SECONDS))
        except (RefusedError, RowLockedError):
            for end in ours:
                with self._abandoning([end.execution]):
                    self._settle_alone(end)

    def _settle_alone(self, end: End) -> None:
        """Settle one of a batch that could not be written; on a thread of its own where its row is held."""
        try:
            self._finish(self._write_storable(end, lock_timeout=_LOCK_SECONDS))
        except RowLockedError:
            threading.Thread(target=self._settle_patiently, args=[end], name="settle-held", daemon=True).start()

    def _settle_patiently(self, end: End) -> None:
        """Try again and again until the row is let go; no connection is kept meanwhile."""
        retrying = Retrying(retry=retry_if_exception_type(RowLockedError), wait=wait_random(0.2, 1.0))
        with self._abandoning([end.execution]):
            self._finish(retrying(self._write_storable, end, lock_timeout=_LOCK_SECONDS))

    def _write_storable(self, end: End, *, lock_timeout: float) -> list[End]:
        try:
            return self._write([end], lock_timeout=lock_timeout)
        except RefusedError as error:
            claim, cause = end.execution.claim, _cause(error)
            log.error("output_refused", run_id=claim.run_id, fence=claim.fence, **describe(cause))
            refused = End(end.execution, unstorable(cause))
            return self._write([refused], lock_timeout=lock_timeout)

    def _write(self, ends: list[End], *, lock_timeout: float) -> list[End]:
        """Write these endings, for as long as it takes: finished runs keep their outcomes while Postgres is away."""

        def say(state: RetryCallState) -> None:
            self._metrics.database_failed()
            if state.attempt_number == 1:
                for claim in endings:
                    log.warning("settle_waits_for_database", run_id=claim.run_id, fence=claim.fence)

        retrying = Retrying(
            retry=retry_if_exception(_is_away),
            wait=wait_exponential_jitter(initial=0.1, max=5.0, jitter=0.5),
            before_sleep=say,
            reraise=True,
        )
        endings: dict[Claim, Ending] = {end.execution.claim: end.ending for end in ends if end.ending is not None}
        settled = retrying(self._store.settle_all, endings, lock_timeout=lock_timeout)
        return [End(end.execution, end.ending, settled.get(end.execution.claim)) for end in ends]


def _is_away(error: BaseException) -> bool:
    return isinstance(error, DatabaseError) and not isinstance(error, RowLockedError | RefusedError)


def _cause(error: RefusedError) -> BaseException:
    """Return the driver's error, whose class says what was refused."""
    return getattr(error.__cause__, "orig", None) or error
