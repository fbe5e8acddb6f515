"""Do the work that follows a settled run: return slots in Redis, close traces, wake the dispatchers.

It runs on a thread of its own, since each step may wait: for a Redis that does not answer, or for a locked row of a
trace. Settling never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orcheo_dispatch.shared.broker.slots import RunSlots
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.process.lasting import Inbox, LastingThread
from orcheo_dispatch.worker.messages.wire import Wire

_IDLE_SECONDS = 1.0
_LOCK_SECONDS = 1.0
_MAX_BATCH = 500


@dataclass(frozen=True, slots=True)
class Aftermath:
    """Remaining work for one settled run."""

    run_id: str
    slot_due_in: str | None = None
    """The workspace that the slot must be returned to."""
    trace_open: bool = False
    requeued: bool = False


class Aftermaths:
    """Do the remaining work of settled runs, many at a time."""

    def __init__(
        self,
        store: Store,
        slots: RunSlots,
        wire: Wire,
        metrics: WorkerMetrics,
        *,
        note_slots_returned: Callable[[Iterable[str]], None],
    ) -> None:
        self._store = store
        self._slots = slots
        self._wire = wire
        self._metrics = metrics
        self._note_slots_returned = note_slots_returned
        self._waiting: Inbox[Aftermath] = Inbox()
        self._thread = LastingThread("aftermath", self._turn, idle=self._waiting.empty, inbox=self._waiting)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Do the remaining work, then stop."""
        self._thread.stop()

    @property
    def makes_progress(self) -> bool:
        """Whether the thread makes progress."""
        return self._thread.makes_progress

    def put(self, aftermath: Aftermath) -> None:
        """Queue remaining work; may be called from any thread."""
        self._waiting.put(aftermath)

    def _turn(self) -> None:
        batch = self._waiting.take(_IDLE_SECONDS, most=_MAX_BATCH)
        slots = [(each.run_id, each.slot_due_in) for each in batch if each.slot_due_in is not None]
        if slots:
            self._give_back(slots)
        if any(each.requeued for each in batch):
            self._wire.wake_dispatchers()
        for each in batch:
            if each.trace_open:
                self._thread.note_progress()
                self._store.close_traces([each.run_id], lock_timeout=_LOCK_SECONDS)

    def _give_back(self, slots: Sequence[tuple[str, str]]) -> None:
        try:
            self._slots.give_back_all(slots)
        except BrokerError as error:
            # The slots stay due in the ledger, and the dispatcher returns them.
            self._metrics.broker_failed()
            for run_id, _ in slots:
                log.warning("slot_not_returned", run_id=run_id, reason=str(error))
        else:
            self._note_slots_returned(run_id for run_id, _ in slots)
