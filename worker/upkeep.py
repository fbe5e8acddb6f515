"""Exchange data with Postgres once per heartbeat interval, except for renewing leases.

Each round reports that this process is alive and which run slots were returned, and reads which of its runs the API has
ended. It has a thread and a connection of its own: it may wait for a lock on the API's table, up to `LOCK_SECONDS` per
round, and costs no lease. Each of the three steps is done even if another one fails.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from sqlalchemy import Engine

from orcheo_dispatch.shared.database.apart import write_apart
from orcheo_dispatch.shared.database.connections import make_engine
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.lasting import LastingThread
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.execution import Executions, Stop

LOCK_SECONDS = 1.0


class Upkeep:
    """Do one round every `settings.heartbeat` seconds until stopped."""

    def __init__(self, settings: Settings, process: Process, executions: Executions, metrics: WorkerMetrics) -> None:
        self._interval = settings.heartbeat
        self._process = process
        self._executions = executions
        self._metrics = metrics
        self._engine: Engine = make_engine(settings, role="upkeep", connections=1)
        self._store = Store(self._engine, worker_id=process.id)
        self._returned: list[str] = []
        self._returned_lock = threading.Lock()
        self._failing: set[str] = set()
        self._due = 0.0
        self._thread = LastingThread("upkeep", self._turn)

    def start(self) -> None:
        """Register this process, and start the rounds. Raises `DatabaseError`."""
        self._process.seen(self._engine)
        self._due = time.monotonic() + self._interval
        self._thread.start()

    def stop(self) -> None:
        """Record the slots returned since the last round, deregister the process and stop."""
        self._thread.stop(timeout=2 * self._interval)
        try:
            self._note_slots()
            self._process.gone(self._engine)
        except DatabaseError as error:
            log.warning("deregister_failed", reason=str(error))
        self._engine.dispose()

    @property
    def makes_progress(self) -> bool:
        """Whether rounds begin when they are due."""
        return time.monotonic() - self._thread.turned_at <= 2 * self._interval

    def note_slots_returned(self, run_ids: Iterable[str]) -> None:
        """Have the next round record that the slots of these runs were returned."""
        with self._returned_lock:
            self._returned.extend(run_ids)

    def _turn(self) -> None:
        if self._thread.pause(max(0.0, min(self._interval, self._due - time.monotonic()))):
            return
        self._due = time.monotonic() + self._interval
        steps: dict[str, Callable[[], None]] = {
            "seen": self._say_alive,
            "slots": self._note_slots,
            "cancelled": self._stop_what_has_ended,
        }
        for name, step in steps.items():
            self._thread.note_progress()
            try:
                step()
            except DatabaseError as error:
                self._metrics.database_failed()
                if name not in self._failing:
                    log.warning("upkeep_failed", what=name, reason=error.what)
                self._failing.add(name)
            else:
                if name in self._failing:
                    log.info("upkeep_recovered", what=name)
                self._failing.discard(name)

    def _say_alive(self) -> None:
        self._process.seen(self._engine, running=len(self._executions), lock_timeout=LOCK_SECONDS)

    def _note_slots(self) -> None:
        with self._returned_lock:
            run_ids, self._returned = self._returned, []
        for part in write_apart(run_ids, self._store.slots_returned) if run_ids else ():
            if part.error is None:
                continue
            if part.one:
                # It stays due, and the dispatcher returns it again, without effect.
                log.warning("slot_not_noted", run_id=part.items[0], error=part.error.what)
                continue
            self.note_slots_returned(part.items)
            raise part.error

    def _stop_what_has_ended(self) -> None:
        claims = [execution.claim for execution in self._executions]
        if not claims:
            return
        for claim in self._store.ended_by_api(claims, lock_timeout=LOCK_SECONDS):
            execution = self._executions.get(claim)
            if execution is not None and execution.stop(Stop.CANCELLED):
                log.warning("run_ended_by_api", run_id=claim.run_id, fence=claim.fence)
