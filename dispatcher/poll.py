"""One poll: reap, reconcile, room, claim, publish, settle. The whole of what a dispatcher does."""

from __future__ import annotations

import time
from uuid import UUID

import redis

from dispatcher.admitting import Admitter
from dispatcher.broker_gate import BrokerGate
from dispatcher.publisher import Publisher, claims_per_message
from dispatcher.queue_choice import QueueChoice
from dispatcher.report import PollReport
from shared.errors import BrokerError, DatabaseError
from shared.held import held_claims
from shared.installation import Installation
from shared.ledger import TURNS_INDEX, Claim, Outcome
from shared.logs import log
from shared.metrics import DispatcherMetrics
from shared.settings import Settings
from shared.slots import RunSlots
from shared.store import Store
from shared.turns import Limits, Turns

MAINTENANCE_SECONDS = 30.0
SLOT_PATIENCE_SECONDS = 15.0
"""A worker notes the slots it gave back with its heartbeats; only what is due for longer is looked into."""
_MAINTENANCE_BATCH = 1000
_CANCELLED_SECONDS = 86_400.0
"""The API's counter of slots, too, lives for a day."""
_WAITING, _DELIVERED = "waiting in Redis", "delivered"
_FULL_QUEUE_SECONDS = 0.05
_MANY = 8
"""Claims of one poll from which on a message may carry several."""


class Poller:
    """Polls. Not thread-safe: one at a time; any number of pollers in other processes do no harm."""

    def __init__(
        self,
        settings: Settings,
        *,
        installation: Installation,
        store: Store,
        publisher: Publisher,
        broker: redis.Redis,
        slots: RunSlots,
        dispatcher_id: UUID,
        metrics: DispatcherMetrics,
    ) -> None:
        self._settings = settings
        self._installation = installation
        self._store = store
        self._publisher = publisher
        self._broker = broker
        self._slots = slots
        self._id = dispatcher_id
        self._metrics = metrics
        self._queue_choice = QueueChoice(store, broker, installation, lease=settings.worker_lease)
        self._gate = BrokerGate(broker, installation.runs, metrics)
        self._maintenance_at = 0.0
        self._more_to_prune = False
        self._full_polls = 0
        self._backlog_is_deep = False
        self._reap_from = 0.0
        self._turns = Turns()
        self._admitter = Admitter(settings, store, dispatcher_id)
        self._limits = Limits(settings.max_running_per_workflow, settings.max_running_per_workspace)
        self._in_turn = True

    @property
    def broker_problem(self) -> str | None:
        """What is wrong with Redis, in one line; None where the last thing this poller asked of it succeeded."""
        return self._gate.problem

    def poll(self) -> PollReport:
        """Poll once and return what was done. Raises `DatabaseError`; survives a broker that is away.

        Every step is a transaction of its own, committed before Redis is spoken to.
        """
        try:
            return self._poll()
        except DatabaseError:
            # While the database was away nobody could beat: its return is not the moment to call workers lost.
            self._reap_from = time.monotonic() + self._settings.worker_lease
            raise

    def _poll(self) -> PollReport:
        look = self._store.look(triggers=self._settings.triggers, every_trigger=self._settings.takes_every_trigger)
        self._note_index(look.in_turn)
        lost, requeued = self._reap() if look.lost else (0, 0)
        broker_error = self._gate.probe()
        if look.queued and not broker_error:
            self._queue_choice.queue()
        extended, released = self._reconcile() if look.lapsed and not broker_error else (0, 0)
        self._maintain()
        queued = self._store.queued() if released else look.queued
        room = min(self._settings.batch_size, max(0, self._settings.max_queued - queued))
        self._metrics.room(room)
        if broker_error or room < self._least_room():
            delay = self._gate.delay if broker_error else self._full_delay()
            return PollReport(lost, requeued, extended, released, room, broker_error=broker_error, next_delay=delay)
        self._full_polls = 0

        # What was requeued or released by this poll may be claimed by it.
        claims, more = self._claim(room) if look.pending or requeued or released else ([], False)
        self._metrics.claimed(len(claims))
        self._backlog_is_deep = len(claims) == room
        published, error = self._publish(claims) if claims else ([], None)
        if published:
            self._metrics.published(len(published))
            self._store.mark_published(published, lease=self._settings.lease)
        if error:
            unpublished = [claim for claim in claims if claim not in set(published)]
            given_back = self._store.release(unpublished, reason="broker_away")
            self._metrics.released(given_back, "broker_away")
            released += given_back
            self._gate.failed(error)
        return PollReport(
            lost,
            requeued,
            extended,
            released,
            room,
            len(claims),
            len(published),
            str(error) if error else None,
            self._gate.delay if error else (0.0 if more else None),
        )

    def _least_room(self) -> int:
        """Return how much room is worth a claim: with a deep backlog a batch, while workers have half a queue to do.

        Else each poll would claim what was begun since the last one, in ever smaller messages.
        """
        return min(self._settings.batch_size, max(1, self._settings.max_queued // 2)) if self._backlog_is_deep else 1

    def _publish(self, claims: list[Claim]) -> tuple[list[Claim], BrokerError | None]:
        if len(claims) < _MANY:
            return self._publisher.publish(claims, queue=self._queue_choice.queue())
        workers = self._store.live_workers(lease=self._settings.worker_lease)
        return self._publisher.publish(
            claims, per_message=claims_per_message(len(claims), workers), queue=self._queue_choice.queue()
        )

    def _claim(self, room: int) -> tuple[list[Claim], bool]:
        """Return what was claimed, and whether more could be at once."""
        claims = self._store.claim(
            room,
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            lease=self._settings.lease,
            dispatcher_id=self._id,
            turns=self._turns,
            limits=self._limits,
            in_turn=self._in_turn,
        )
        return claims, self._turns.more

    def _note_index(self, there: bool) -> None:
        """Say once a change whether claims can be made in turn."""
        if there and not self._in_turn:
            log.info("index_back", index=TURNS_INDEX)
        elif not there and self._in_turn:
            log.warning("index_missing", index=TURNS_INDEX, mend="orcheo-dispatch migrate")
        self._in_turn = there

    def _reap(self) -> tuple[int, int]:
        if time.monotonic() < self._reap_from:
            return 0, 0
        reaped = self._store.reap(
            self._settings.lost_runs,
            max_attempts=self._settings.max_attempts,
            lease=self._settings.worker_lease,
            batch=self._settings.batch_size,
        )
        for run in reaped:
            log.warning(
                "run_reaped",
                run_id=run.claim.run_id,
                workflow_id=run.workflow_id,
                fence=run.claim.fence,
                outcome=run.outcome.value,
                worker_id=str(run.worker_id),
            )
        if reaped:
            self._store.close_traces(run.claim.run_id for run in reaped)
            self._return_slots(older_than=0.0)
        requeued = sum(run.outcome is Outcome.REQUEUED for run in reaped)
        self._metrics.reaped(lost=sum(run.outcome is Outcome.LOST for run in reaped), requeued=requeued)
        return len(reaped) - requeued, requeued

    def _reconcile(self) -> tuple[int, int]:
        """Extend the claims whose messages Redis still holds and release those whose messages it lost.

        A message that a worker took and did not acknowledge for a lease died with its worker: Celery
        acknowledges ours as soon as their runs are taken up.
        """
        lapsed = self._store.lapsed(batch=max(self._settings.batch_size, self._settings.max_queued))
        if not lapsed:
            return 0, 0
        try:
            held = held_claims(self._broker, self._installation, lapsed.keys())
        except BrokerError as error:
            self._gate.failed(error)
            return 0, 0
        waiting = [claim for claim in lapsed if claim in held.waiting]
        delivered = [claim for claim, why in lapsed.items() if claim in held.delivered and why != _DELIVERED]
        missing = lapsed.keys() - {*waiting, *delivered}
        if waiting:
            self._store.extend(waiting, lease=self._settings.lease, reason=_WAITING)
        if delivered:
            self._store.extend(delivered, lease=self._settings.lease, reason=_DELIVERED)
        released = self._store.release(missing, reason="message_lost") if missing else 0
        self._metrics.extended(len(waiting) + len(delivered))
        self._metrics.released(released, "message_lost")
        log.warning("claims_reconciled", extended=len(waiting) + len(delivered), released=released)
        return len(waiting) + len(delivered), released

    def _maintain(self) -> None:
        """Now and then: give back slots that a dead worker owed, settle rows without a run, prune."""
        now = time.monotonic()
        if now < self._maintenance_at:
            if self._more_to_prune:
                self._prune()
            return
        self._maintenance_at = now + MAINTENANCE_SECONDS
        self._store.reap_orphans()
        # Before anything is pruned that was not counted.
        self._store.count_ended()
        self._prune()
        adopted = self._store.adopt_cancelled(
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
            younger_than=_CANCELLED_SECONDS,
            dispatcher_id=self._id,
            batch=_MAINTENANCE_BATCH,
        )
        self._return_slots(older_than=0.0 if adopted else SLOT_PATIENCE_SECONDS)
        self._admitter.lost()

    def _prune(self) -> None:
        """Prune one batch. After a full one the next poll goes on: a batch each 30 s would be 2,000 runs a minute."""
        pruned = self._store.prune(retention=self._settings.retention, batch=_MAINTENANCE_BATCH)
        self._more_to_prune = pruned == _MAINTENANCE_BATCH

    def _return_slots(self, *, older_than: float) -> None:
        due = self._store.slots_due(older_than=older_than, batch=_MAINTENANCE_BATCH)
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

    def _full_delay(self) -> float:
        """Look again soon whether workers made room, and ever less often while they do not."""
        self._full_polls = min(self._full_polls + 1, 10)
        return float(min(self._settings.poll_interval, _FULL_QUEUE_SECONDS * 2 ** (self._full_polls - 1)))
