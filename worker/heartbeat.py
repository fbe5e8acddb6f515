"""Extend the leases of this process's runs, and detect the runs that it no longer holds.

The heartbeat has a thread and a connection of its own, and touches only the ledger: a blocked event loop, an exhausted
pool or a lock on the API's table must not cost any run its lease. `worker/upkeep.py` does the other periodic work.

If Postgres refuses the renewal of one run, because of a trigger for example, only that run loses its lease. The others
are renewed in parts (`shared/database/apart.py`), and from then on the refused run is tried last and by itself. A
statement may take a tenth of the lease, or more after failures, so that all other runs are renewed within one lease.

A locked row is skipped, the others are renewed, and it is retried several times between two beats. Its run need not
stop, however long the lock lasts: reap, requeue, claim and begin all need a lock on the same row, and the dispatchers
skip locked rows as well. If the lock is released after the lease has expired, either the worker renews the lease first,
or a dispatcher reaps the run. In that case the next retry, a fraction of a second later, detects the loss and stops the
run; until then the fence guards everything that it writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from sqlalchemy import Engine

from orcheo_dispatch.shared.database.apart import write_apart
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.lasting import LastingThread
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.execution import Execution, Executions, Stop

_TIMEOUT_OF_LEASE, _MAX_TIMEOUT_OF_LEASE = 1 / 10, 1 / 2
_RETRIES_PER_BEAT = 4
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.05, 1.0


class Heartbeat:
    """Extend leases every `settings.heartbeat` seconds until stopped; usually in one statement per beat."""

    def __init__(self, settings: Settings, process: Process, executions: Executions, metrics: WorkerMetrics) -> None:
        self._interval = settings.heartbeat
        self._lease = settings.worker_lease
        self._timeout = self._shortest_timeout = self._lease * _TIMEOUT_OF_LEASE
        self._executions = executions
        self._metrics = metrics
        self._engine: Engine = make_engine(settings, role="heartbeat", connections=1)
        self._store = Store(self._engine, worker_id=process.id)
        self._renewed_at: dict[Claim, float] = {}
        self._held: list[Claim] = []
        self._refused: dict[Claim, None] = {}
        self._due = 0.0
        self._unavailable = False
        self._beating = threading.Lock()
        self.beaten_at = float("-inf")
        """`time.monotonic()` of the last beat that reached the database."""
        self._thread = LastingThread("heartbeat", self._turn)

    def start(self) -> None:
        """Start the heartbeat."""
        self._due = time.monotonic() + self._interval
        self._thread.start()

    def stop(self) -> None:
        """Stop, and close the connection. Call it when no runs remain."""
        self._thread.stop(timeout=2 * self._interval)
        self._engine.dispose()

    @property
    def turned_at(self) -> float:
        """`time.monotonic()` when the last beat, or the last wait for one, began, whether or not it succeeded."""
        return self._thread.turned_at

    @property
    def gets_on(self) -> bool:
        """Whether beats begin when they are due, regardless of whether they reach the database."""
        return time.monotonic() - self.turned_at <= 2 * self._interval

    def beat(self) -> None:
        """Extend all leases, and stop the runs that this worker no longer holds. Raises `DatabaseError`."""
        self._renew([execution.claim for execution in self._executions])

    def stop_what_was_not_renewed(self) -> None:
        """Stop the runs whose leases were not renewed in time: a stale holder stops itself.

        Call it from another thread: the heartbeat's own may be waiting for a dead connection.
        """
        now = time.monotonic()
        for execution in self._executions:
            renewed_at = max(execution.begun_at, self._renewed_at.get(execution.claim, execution.begun_at))
            if now - renewed_at >= self._lease:
                self._stop(execution, Stop.LEASE_OVER, "lease_not_renewed")

    def _turn(self) -> None:
        """Wait until the next beat, or the next retry of locked rows, is due; then extend the leases."""
        retry = min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, self._interval / _RETRIES_PER_BEAT))
        left = max(0.0, self._due - time.monotonic())
        if self._thread.pause(min(left, retry) if self._held else min(left, self._interval)):
            return
        self._thread.note_progress()
        whole = time.monotonic() >= self._due
        if whole:
            self._due = time.monotonic() + self._interval
        elif not self._held:
            return
        try:
            self._renew([execution.claim for execution in self._executions] if whole else self._held)
        except DatabaseError as error:
            self._metrics.beaten(succeeded=False)
            self._metrics.database_failed()
            if not self._unavailable:
                log.warning("heartbeat_failed", reason=str(error))
            self._unavailable = True
        else:
            self._metrics.beaten(succeeded=True)
            if self._unavailable:
                log.info("heartbeat_recovered")
            self._unavailable = False

    def _renew(self, claims: Sequence[Claim]) -> None:
        with self._beating:
            self._forget()
            suspects = [claim for claim in self._refused if claim in claims]
            until = time.monotonic() + self._interval
            try:
                # Executed even without claims, to find out whether Postgres can be reached.
                self._renew_some([claim for claim in claims if claim not in self._refused])
                for claim in suspects:
                    # Move it to the end: the runs not tried this time come first the next time.
                    self._refused[claim] = self._refused.pop(claim)
                    self._renew_some([claim])
                    if time.monotonic() >= until:
                        break
            except DatabaseError:
                self._timeout = min(2 * self._timeout, self._lease * _MAX_TIMEOUT_OF_LEASE)
                raise
            self._timeout = self._shortest_timeout

    def _renew_some(self, claims: Sequence[Claim]) -> None:
        """Renew these leases. Raises `DatabaseError` if Postgres is unavailable."""
        for part in write_apart(claims, self._write):
            if part.result is not None:
                self._note(part.items, part.result)
            elif part.one and part.error is not None:
                self._note_refused(part.items[0], part.error)
            elif part.error is not None:
                raise part.error

    def _write(self, claims: Sequence[Claim]) -> tuple[float, dict[Claim, bool]]:
        self._thread.note_progress()
        # Taken before the statement, so that the worker never assumes a lease that lasts longer than the real one.
        began = time.monotonic()
        held = self._store.heartbeat(claims, lease=self._lease, lock_timeout=self._timeout, timeout=self._timeout)
        return began, held

    def _note(self, claims: Sequence[Claim], answer: tuple[float, dict[Claim, bool]]) -> None:
        began, held = answer
        self.beaten_at = max(self.beaten_at, began)
        for claim in claims:
            execution = self._executions.get(claim)
            if execution is None:
                continue
            self._refused.pop(claim, None)
            if claim not in held:
                self._stop(execution, Stop.LOST, "run_lost")
                continue
            # A locked row counts as renewed: the lock keeps every other process from taking the run.
            self._renewed_at[claim] = began
            if held[claim]:
                self._held = [each for each in self._held if each != claim]
            elif claim not in self._held:
                self._held = [*self._held, claim]

    def _note_refused(self, claim: Claim, error: DatabaseError) -> None:
        if claim not in self._refused:
            log.warning("lease_refused", run_id=claim.run_id, fence=claim.fence, error=error.what)
        self._refused[claim] = None

    def _forget(self) -> None:
        """Forget runs that have ended."""
        self._renewed_at = {
            claim: at for claim, at in self._renewed_at.items() if self._executions.get(claim) is not None
        }
        self._held = [claim for claim in self._held if claim in self._renewed_at]
        self._refused = {claim: None for claim in self._refused if self._executions.get(claim) is not None}

    def _stop(self, execution: Execution, why: Stop, event: str) -> None:
        if execution.stop(why):
            log.warning(event, run_id=execution.claim.run_id, fence=execution.claim.fence)
