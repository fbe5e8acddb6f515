"""One poll: look, reap, reconcile, room, claim, publish. What can wait is done beside it (`dispatcher/upkeep.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import redis

from orcheo_dispatch.dispatcher.publishing.broker_gate import BrokerGate
from orcheo_dispatch.dispatcher.publishing.publish import Publisher, claims_per_message
from orcheo_dispatch.dispatcher.publishing.queue_choice import QueueChoice
from orcheo_dispatch.dispatcher.recovery import ReapGate, Recovered, Recovery
from orcheo_dispatch.dispatcher.report import PollReport
from orcheo_dispatch.dispatcher.steps import Steps
from orcheo_dispatch.shared.broker.installation import Installation
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.ledger.model import TURNS_INDEX, Claim, Look
from orcheo_dispatch.shared.ledger.processes import Workers
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.ledger.turns import Limits, Turns
from orcheo_dispatch.shared.logs.setup import log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.settings.model import Settings

_FULL_QUEUE_SECONDS = 0.05
_RETRY_SECONDS = 1.0
"""The time until the next poll where a step of this one failed."""
_MANY = 8
"""Claims of one poll from which on a message may carry several."""


@dataclass(frozen=True, slots=True)
class _Dispatched:
    """What became of the claims of a poll."""

    claimed: int = 0
    published: int = 0
    released: int = 0
    broker_error: str | None = None
    delay: float | None = None


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
        dispatcher_id: UUID,
        metrics: DispatcherMetrics,
        steps: Steps,
        on_reaped: Callable[[list[str]], None],
    ) -> None:
        """`on_reaped` is told which runs were ended or requeued: it returns their slots, and must not wait."""
        self._settings = settings
        self._store = store
        self._publisher = publisher
        self._id = dispatcher_id
        self._metrics = metrics
        self._queue_choice = QueueChoice(store, broker, installation, lease=settings.worker_lease)
        self._gate = BrokerGate(broker, installation.runs, metrics)
        self._reap_gate = ReapGate(lease=settings.worker_lease, heartbeat=settings.heartbeat)
        self._recovery = Recovery(
            settings,
            installation=installation,
            store=store,
            broker=broker,
            broker_gate=self._gate,
            reap_gate=self._reap_gate,
            metrics=metrics,
            on_reaped=on_reaped,
        )
        self._steps = steps
        self._failing = steps.failing
        self._workers = Workers()
        self._queued = 0
        self._full_polls = 0
        self._backlog_is_deep = False
        self._turns = Turns()
        self._limits = Limits(settings.max_running_per_workflow, settings.max_running_per_workspace)
        self._in_turn = True

    @property
    def broker_problem(self) -> str | None:
        """What is wrong with Redis, in one line; None where the last thing this poller asked of it succeeded."""
        return self._gate.problem

    def poll(self) -> PollReport:
        """Poll once and return what was done. Raises `DatabaseError` where the server is unavailable.

        Every step is a transaction of its own, committed before Redis is spoken to. One that fails is reported and
        passed over, and until it succeeds again the claims of a poll come before it.
        """
        try:
            return self._poll()
        except DatabaseError:
            self._reap_gate.outage()
            raise

    def _poll(self) -> PollReport:
        look = self._look()
        recovered = self._recover(look, before_claims=True)
        queued = self._steps.run("room", self._store.queued, look.queued) if recovered.released else look.queued
        room = min(self._settings.batch_size, max(0, self._settings.max_queued - queued))
        self._metrics.room(room)
        dispatched = self._dispatch(look, room, recovered)
        recovered += self._recover(look, before_claims=False)
        if look.queued and not self._gate.problem:
            # Messages that wait may have to go where workers are that read them.
            self._queue_choice.queue()
        return PollReport(
            recovered.lost,
            recovered.requeued,
            recovered.extended,
            recovered.released + dispatched.released,
            room,
            dispatched.claimed,
            dispatched.published,
            dispatched.broker_error,
            self._steps.failing,
            self._next(dispatched.delay, look),
        )

    def _recover(self, look: Look, *, before_claims: bool) -> Recovered:
        """Reap and reconcile: before the claims of this poll, or behind them what failed the last time."""
        found = Recovered()
        if look.at is not None and ("reap" not in self._failing) is before_claims:
            found += self._steps.run("reap", lambda: self._recovery.reap(look), Recovered())
        if ("reconcile" not in self._failing) is before_claims:
            if not look.lapsed:
                self._steps.well("reconcile")
            elif not self._gate.probe():
                found += self._steps.run("reconcile", self._recovery.reconcile, Recovered())
        return found

    def _dispatch(self, look: Look, room: int, recovered: Recovered) -> _Dispatched:
        """Claim and publish."""
        if broker_error := self._gate.probe():
            return _Dispatched(broker_error=broker_error, delay=self._gate.delay)
        if room < self._least_room():
            return _Dispatched(delay=self._full_delay())
        self._full_polls = 0
        if not (look.pending or recovered.requeued or recovered.released):
            self._steps.well("claim")
            self._backlog_is_deep = False
            return _Dispatched()
        # What was requeued or released by this poll may be claimed by it.
        nothing: tuple[list[Claim], bool] = ([], False)
        claims, more = self._steps.run("claim", lambda: self._claim(room), nothing)
        self._metrics.claimed(len(claims))
        self._backlog_is_deep = len(claims) == room
        published, error = self._publish(claims) if claims else ([], None)
        released = self._note_published(claims, published, error)
        delay = self._gate.delay if error else (0.0 if more else None)
        return _Dispatched(len(claims), len(published), released, str(error) if error else None, delay)

    def _look(self) -> Look:
        """Return what there is to do; everything, where that cannot be said."""
        self._failing = self._steps.failing
        look = self._steps.run(
            "look",
            lambda: self._store.look(
                triggers=self._settings.triggers, every_trigger=self._settings.takes_every_trigger
            ),
            None,
        )
        if look is None:
            self._reap_gate.failed()
            return Look(lost=False, lapsed=True, queued=self._queued, pending=True, in_turn=self._in_turn, at=None)
        if look.at is not None:
            self._reap_gate.looked(look.at)
        self._note_index(look.in_turn)
        self._queued = look.queued
        return look

    def _next(self, delay: float | None, look: Look) -> float | None:
        """Return the seconds after which to poll again without waiting for the next tick."""
        delays = [] if delay is None else [delay]
        if look.lost and self._reap_gate.wait:
            delays.append(self._reap_gate.wait)
        if self._steps.failing:
            delays.append(_RETRY_SECONDS)
        return min(delays, default=None)

    def _note_published(self, claims: list[Claim], published: list[Claim], error: BrokerError | None) -> int:
        """Note what went out, and release the rest; return how many claims were released."""
        if published:
            self._metrics.published(len(published))
            self._steps.run("publish", lambda: self._store.mark_published(published, lease=self._settings.lease), None)
        if not error:
            return 0
        self._gate.failed(error)
        unpublished = [claim for claim in claims if claim not in set(published)]
        released = self._steps.run("publish", lambda: self._store.release(unpublished, reason="broker_away"), 0)
        self._metrics.released(released, "broker_away")
        return released

    def _least_room(self) -> int:
        """Return how much room is worth a claim: with a deep backlog a batch, while workers have half a queue to do.

        Else each poll would claim what was begun since the last one, in ever smaller messages.
        """
        return min(self._settings.batch_size, max(1, self._settings.max_queued // 2)) if self._backlog_is_deep else 1

    def _publish(self, claims: list[Claim]) -> tuple[list[Claim], BrokerError | None]:
        if len(claims) < _MANY:
            return self._publisher.publish(claims, queue=self._queue_choice.queue())
        try:
            self._workers = self._store.live_workers(lease=self._settings.worker_lease)
        except DatabaseError as reason:
            # The claims are committed: they go out in messages as large as the last ones, whatever this is.
            log.debug("workers_unknown", reason=str(reason))
        return self._publisher.publish(
            claims, per_message=claims_per_message(len(claims), self._workers), queue=self._queue_choice.queue()
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
            log.info("index_found", index=TURNS_INDEX)
        elif not there and self._in_turn:
            log.warning("index_missing", index=TURNS_INDEX, mend="orcheo-dispatch migrate")
        self._in_turn = there

    def _full_delay(self) -> float:
        """Look again soon whether workers made room, and ever less often while they do not."""
        self._full_polls = min(self._full_polls + 1, 10)
        return float(min(self._settings.poll_interval, _FULL_QUEUE_SECONDS * 2 ** (self._full_polls - 1)))
