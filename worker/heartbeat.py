"""The heartbeat: extends the leases of this process's runs, and learns what became of them meanwhile.

A thread with a connection of its own: a run that blocks the loop, or a pool that is exhausted, must not
cost its neighbours their leases.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from sqlalchemy import Engine

from shared.database import make_engine
from shared.errors import DatabaseError
from shared.logs import describe, log
from shared.metrics import WorkerMetrics
from shared.processes import Process
from shared.settings import Settings
from shared.store import Store
from worker.execution import Execution, Executions, Stop


class Heartbeat:
    """Beats every `settings.heartbeat` seconds until it is stopped; one batched statement a beat."""

    def __init__(self, settings: Settings, process: Process, executions: Executions, metrics: WorkerMetrics) -> None:
        self._interval = settings.heartbeat
        self._lease = settings.worker_lease
        self._process = process
        self._executions = executions
        self._metrics = metrics
        self._engine: Engine = make_engine(settings, role="heartbeat", connections=1)
        self._store = Store(self._engine, worker_id=process.id)
        self._stopping = threading.Event()
        self._returned: list[str] = []
        self._returned_lock = threading.Lock()
        self._away = False
        self.beaten_at = float("-inf")
        """`time.monotonic()` of the last beat that reached the database."""
        self.turned_at = time.monotonic()
        """The same of the last beat that was begun, whatever came of it."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Make this process known, and beat from now on. Raises `DatabaseError`."""
        self._process.seen(self._engine)
        self._thread.start()

    def stop(self) -> None:
        """Beat a last time, take the process off the list and stop."""
        self._stopping.set()
        self._thread.join(timeout=2 * self._interval)
        try:
            self.beat()
            self._process.gone(self._engine)
        except DatabaseError as error:
            log.warning("goodbye_not_said", reason=str(error))
        self._engine.dispose()

    @property
    def gets_on(self) -> bool:
        """Whether beats are begun when they are due; whether they reach the database is another matter."""
        return time.monotonic() - self.turned_at <= 2 * self._interval

    def note_slots_returned(self, run_ids: Iterable[str]) -> None:
        """Have the next beat note that the slots of these runs were given back."""
        with self._returned_lock:
            self._returned.extend(run_ids)

    def beat(self) -> None:
        """Extend all leases; stop the runs that were cancelled or are not ours any more. Raises `DatabaseError`."""
        began = time.monotonic()
        claims = [execution.claim for execution in self._executions]
        held = self._store.heartbeat(claims, lease=self._lease) if claims else {}
        for claim in claims:
            execution = self._executions.get(claim)
            if execution is None:
                continue
            if claim not in held:
                self._stop(execution, Stop.LOST, "run_lost")
            elif held[claim] != "running":
                self._stop(execution, Stop.CANCELLED, "run_ended_by_api")
        self._process.seen(self._engine, running=len(claims))
        self._flush_returned()
        # Of the moment before: the lease is not later than what we believe.
        self.beaten_at = began

    def stop_what_was_not_renewed(self) -> None:
        """Give up the runs whose leases have run out: a stale holder stops itself.

        For another thread than the heartbeat's own, which may be waiting for a connection that is dead.
        """
        if time.monotonic() - self.beaten_at < self._lease:
            return
        for execution in self._executions:
            if time.monotonic() - execution.begun_at >= self._lease:
                self._stop(execution, Stop.LEASE_OVER, "lease_not_renewed")

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self.turned_at = time.monotonic()
            try:
                self.beat()
            except DatabaseError as error:
                self._metrics.beaten(succeeded=False)
                self._metrics.database_failed()
                if not self._away:
                    log.warning("heartbeat_failed", reason=str(error))
                self._away = True
            except Exception as error:  # noqa: BLE001 - a fault of ours must not cost all runs their leases
                log.error("heartbeat_failed", **describe(error))
            else:
                self._metrics.beaten(succeeded=True)
                if self._away:
                    log.info("heartbeat_back")
                self._away = False

    def _stop(self, execution: Execution, why: Stop, event: str) -> None:
        if execution.stop(why):
            log.warning(event, run_id=execution.claim.run_id, fence=execution.claim.fence)

    def _flush_returned(self) -> None:
        with self._returned_lock:
            run_ids, self._returned = self._returned, []
        if not run_ids:
            return
        try:
            self._store.slots_returned(run_ids)
        except DatabaseError:
            with self._returned_lock:
                self._returned.extend(run_ids)
            raise
