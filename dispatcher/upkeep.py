"""Maintenance on its own thread and connection, so that claims never wait for it.

Records live processes, returns the slots of lost workers' runs, closes their traces, adopts cancelled runs, admits runs
whose push was lost, settles ledger rows without a run, counts ended runs and prunes old rows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from sqlalchemy import Engine

from orcheo_dispatch.dispatcher.steps import Steps
from orcheo_dispatch.dispatcher.wakeups.admit import Admitter
from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.operators.policies import Policies
from orcheo_dispatch.shared.ledger.processes import Process, prune_processes
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.metrics.steps import StepName
from orcheo_dispatch.shared.settings.model import Settings

INTERVAL_SECONDS = 30.0
SLOT_PATIENCE_SECONDS = 15.0
"""With its heartbeats a worker records the slots it returned; only slots due for longer than this are returned here."""
SEEN_SECONDS = 5.0
_BATCH = 1000
_MOST_BEATS = 16
_CANCELLED_SECONDS = 86_400.0
"""The API's slot counter also expires after a day."""
_PROCESSES_SECONDS = 3600.0
_TRACE_SECONDS = 120.0
"""How long closing the traces of a reaped run is retried (seconds): a trace may be locked."""


@dataclass(slots=True)
class _Due:
    """A periodic job."""

    every: float
    at: float = float("-inf")

    def now(self) -> bool:
        """Return whether it is due; if so, schedule the next time."""
        now = time.monotonic()
        if now < self.at:
            return False
        self.at = now + self.every
        return True


class Upkeep:
    """Does rounds of maintenance; each step of a round is its own transaction and failure domain."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine,
        store: Store,
        slots: RunSlots,
        process: Process,
        metrics: DispatcherMetrics,
    ) -> None:
        """`engine` and `store` are used only here."""
        self._settings = settings
        self._engine = engine
        self._store = store
        self._slots = slots
        self._process = process
        self._metrics = metrics
        self._steps = Steps(engine, metrics)
        self._admitter = Admitter(settings, store, process.id)
        self._round = _Due(INTERVAL_SECONDS)
        self._seen = _Due(SEEN_SECONDS)
        self._processes = _Due(_PROCESSES_SECONDS, at=time.monotonic() + _PROCESSES_SECONDS)
        self._more_to_prune = False
        self._wake = threading.Condition()
        self._stopping = False
        self._stopped = threading.Event()
        self._polled = False
        self._beats: dict[UUID, Process] = {}
        self._reaped: dict[str, float] = {}
        self._slots_are_due = False
        self._began_at: float | None = None
        self._postponed = False
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Start doing rounds."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Finish the current round and begin no other."""
        with self._wake:
            self._stopping = True
            self._stopped.set()
            self._wake.notify()
        self._thread.join(timeout)

    def overdue(self, seconds: float) -> bool:
        """Return whether the current round has taken more than `seconds`."""
        began_at = self._began_at
        return began_at is not None and time.monotonic() - began_at > seconds

    def polled(self) -> None:
        """Note that a poll succeeded: only then is the dispatcher recorded as alive."""
        with self._wake:
            self._polled = True
            if self._hurries():
                self._wake.notify()

    def ticked(self, beat: Process) -> None:
        """Note that this Beat is alive."""
        with self._wake:
            # Anyone who can write to Redis can forge ticks of any number of Beats.
            if len(self._beats) < _MOST_BEATS:
                self._beats[beat.id] = beat

    def reaped(self, run_ids: list[str]) -> None:
        """Close the traces of these runs and return their slots as soon as possible."""
        until = time.monotonic() + _TRACE_SECONDS
        with self._wake:
            self._reaped.update(dict.fromkeys(run_ids, until))
            self._slots_are_due = True
            self._wake.notify()

    def once(self) -> None:
        """Do the work that is due. Raises `DatabaseError` if the server is unavailable."""
        self._say_alive()
        round_is_due = self._round.now()
        with self._wake:
            slots_are_due, self._slots_are_due = self._slots_are_due, False
        if slots_are_due or round_is_due:
            self._close_traces()
        if slots_are_due:
            self._do("slots", lambda: self._return_slots(older_than=0.0))
        if round_is_due:
            self._do("orphans", self._store.reap_orphans)
            # Before pruning, so that every run is counted.
            self._do("count", self._store.count_ended)
            self._do("adopt", self._adopt)
            self._do("questions", self._forget_questions)
            self._do("slots", lambda: self._return_slots(older_than=SLOT_PATIENCE_SECONDS))
            self._do("admit", self._admitter.lost)
        if round_is_due or self._more_to_prune:
            self._do("prune", self._prune)
        if self._processes.now():
            self._do("processes", lambda: prune_processes(self._engine))
            self._do("prune", Policies(self._engine).prune)

    def _run(self) -> None:
        while self._wait():
            self._began_at = time.monotonic()
            try:
                self.once()
                self._note_postponed(None)
            except DatabaseError as error:
                self._metrics.database_failed()
                self._note_postponed(error)
                self._round.at = time.monotonic() + SEEN_SECONDS
            except Exception as error:  # noqa: BLE001 - a fault of ours must not end the thread
                log.error("upkeep_crashed", **describe(error))
                self._stopped.wait(SEEN_SECONDS)
            self._began_at = None

    def _note_postponed(self, error: DatabaseError | None) -> None:
        """Log each change. Polls may succeed meanwhile, on connections that are already open."""
        if error is not None and not self._postponed:
            log.warning("upkeep_postponed", reason=str(error))
        elif error is None and self._postponed:
            log.info("upkeep_resumed")
        self._postponed = error is not None

    def _wait(self) -> bool:
        with self._wake:
            if not self._stopping and not self._slots_are_due and not self._more_to_prune:
                self._wake.wait_for(lambda: self._stopping or self._hurries(), self._pause())
            return not self._stopping

    def _hurries(self) -> bool:
        return self._slots_are_due or (self._polled and time.monotonic() >= self._seen.at)

    def _pause(self) -> float:
        return max(0.0, min(self._round.at - time.monotonic(), INTERVAL_SECONDS))

    def _do(self, step: StepName, work: Callable[[], object]) -> None:
        self._steps.run(step, work, None)

    def _say_alive(self) -> None:
        if not self._polled or not self._seen.now():
            return
        with self._wake:
            self._polled = False
            beats, self._beats = list(self._beats.values()), {}
        for process in (self._process, *beats):
            self._do("processes", partial(process.seen, self._engine))

    def _close_traces(self) -> None:
        now = time.monotonic()
        with self._wake:
            self._reaped = {run_id: until for run_id, until in self._reaped.items() if until > now}
            run_ids = list(self._reaped)
        if run_ids:
            self._store.close_traces(run_ids)

    def _adopt(self) -> None:
        adopted = self._store.adopt_cancelled(
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            younger_than=_CANCELLED_SECONDS,
            dispatcher_id=self._process.id,
            batch=_BATCH,
        )
        if adopted:
            self._return_slots(older_than=0.0)

    def _forget_questions(self) -> None:
        """Close the traces of runs that were ended while they waited for an answer, and have their slots returned."""
        forgotten = self._store.forget_questions(batch=_BATCH)
        if forgotten:
            self._store.close_traces(forgotten)
            self._return_slots(older_than=0.0)

    def _prune(self) -> None:
        """Prune one batch. After a full one the next follows at once: one per 30 s would be 2,000 runs per minute."""
        self._more_to_prune = False
        pruned = self._store.prune(retention=self._settings.retention, batch=_BATCH)
        self._more_to_prune = pruned == _BATCH

    def _return_slots(self, *, older_than: float) -> None:
        due = self._store.slots_due(older_than=older_than, batch=_BATCH)
        returned = []
        try:
            for run_id, workspace_id in due:
                self._slots.give_back(run_id, workspace_id)
                returned.append(run_id)
        except BrokerError as error:
            self._metrics.broker_failed()
            log.warning("slots_not_returned", due=len(due) - len(returned), reason=str(error))
        if returned:
            self._store.slots_returned(returned)
            log.info("slots_returned", runs=len(returned))
