"""Extend the leases of this process's runs, and find out which are no longer its own.

A thread with a connection of its own that does nothing else, and touches the ledger alone: a run that blocks the loop,
a pool that is exhausted, or a lock on the API's table must not cost anybody a lease. `worker/upkeep.py` does the rest
of what is due at intervals.

What Postgres refuses for one run, a trigger say, costs the lease of that run alone: the others are renewed in parts
(`shared/database/apart.py`), and the refused one is tried last, by itself, from then on. A statement may take a tenth
of the lease, more where none has succeeded, so that all other runs are renewed within a lease.

A locked row is skipped, the others are renewed, and it is retried several times between two heartbeats.
Its run need not stop, however long that takes: no process can reap, requeue, claim or begin it without a lock on that
row, and dispatchers skip locked rows as well. When the row is unlocked after the lease has expired, either we
renew it first, or a dispatcher reaps it; then the next attempt, a fraction of a second later, finds it lost and stops
it, and until then the fence guards all that it writes.
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
    """Beats every `settings.heartbeat` seconds until it is stopped; one statement a beat, as a rule."""

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
        """Beat from now on."""
        self._due = time.monotonic() + self._interval
        self._thread.start()

    def stop(self) -> None:
        """Stop, and close the connection: there are no runs left."""
        self._thread.stop(timeout=2 * self._interval)
        self._engine.dispose()

    @property
    def turned_at(self) -> float:
        """`time.monotonic()` of the last beat that was begun, whatever came of it, or of the last wait for one."""
        return self._thread.turned_at

    @property
    def gets_on(self) -> bool:
        """Whether beats are begun when they are due; whether they reach the database is another matter."""
        return time.monotonic() - self.turned_at <= 2 * self._interval

    def beat(self) -> None:
        """Extend all leases; stop the runs that are not ours any more. Raises `DatabaseError`."""
        self._renew([execution.claim for execution in self._executions])

    def stop_what_was_not_renewed(self) -> None:
        """Give up the runs whose leases have expired: a stale holder stops itself.

        Called from another thread, since the heartbeat's own may be waiting on a dead connection.
        """
        now = time.monotonic()
        for execution in self._executions:
            renewed_at = max(execution.begun_at, self._renewed_at.get(execution.claim, execution.begun_at))
            if now - renewed_at >= self._lease:
                self._stop(execution, Stop.LEASE_OVER, "lease_not_renewed")

    def _turn(self) -> None:
        """Wait for the next beat, or to try again what was held; then beat."""
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
                # Also without runs, to learn whether Postgres can be reached.
                self._renew_some([claim for claim in claims if claim not in self._refused])
                for claim in suspects:
                    # Those tried last this time come first the next time.
                    self._refused[claim] = self._refused.pop(claim)
                    self._renew_some([claim])
                    if time.monotonic() >= until:
                        break
            except DatabaseError:
                self._timeout = min(2 * self._timeout, self._lease * _MAX_TIMEOUT_OF_LEASE)
                raise
            self._timeout = self._shortest_timeout

    def _renew_some(self, claims: Sequence[Claim]) -> None:
        """Renew these. Raises `DatabaseError` where Postgres is unavailable."""
        for part in write_apart(claims, self._write):
            if part.result is not None:
                self._note(part.items, part.result)
            elif part.one and part.error is not None:
                self._note_refused(part.items[0], part.error)
            elif part.error is not None:
                raise part.error

    def _write(self, claims: Sequence[Claim]) -> tuple[float, dict[Claim, bool]]:
        self._thread.note_progress()
        # Of the moment before: the lease is not later than what we believe.
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
            # The lock on the row keeps every other process from it as well.
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
