"""One poll: look, reap, reconcile, room, claim, publish. Work that can wait is in `dispatcher/upkeep.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from orcheo_dispatch.dispatcher.claiming import Claimer
from orcheo_dispatch.dispatcher.publishing.outgoing import Outgoing, Sent
from orcheo_dispatch.dispatcher.recovery import Recovered, Recovery
from orcheo_dispatch.dispatcher.steps import Steps
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import Claim, Look
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.settings.model import Settings

_FULL_QUEUE_SECONDS = 0.05
_RETRY_SECONDS = 1.0
"""Delay until the next poll if a step of this one failed."""


@dataclass(frozen=True, slots=True)
class PollReport:
    """What one poll did, in runs."""

    lost: int = 0
    requeued: int = 0
    extended: int = 0
    released: int = 0
    room: int = 0
    claimed: int = 0
    published: int = 0
    broker_error: str | None = None
    failing: tuple[str, ...] = ()
    """The steps that failed: each was skipped, and its reason is in the log."""
    next_delay: float | None = None
    """Seconds after which to poll again without waiting for the next tick; None to wait for the tick."""

    @property
    def dispatches(self) -> bool:
        """Whether the poll could look for runs and claim them."""
        return not {"look", "claim"} & set(self.failing)


@dataclass(frozen=True, slots=True)
class _Dispatched:
    """The result of claiming and publishing in one poll."""

    claimed: int = 0
    sent: Sent = field(default_factory=Sent)
    delay: float | None = None


class Poller:
    """Polls. Not thread-safe; pollers in any number of other processes may run at the same time."""

    def __init__(
        self,
        settings: Settings,
        *,
        claimer: Claimer,
        outgoing: Outgoing,
        recovery: Recovery,
        steps: Steps,
        metrics: DispatcherMetrics,
    ) -> None:
        self._settings = settings
        self._claimer = claimer
        self._outgoing = outgoing
        self._recovery = recovery
        self._steps = steps
        self._metrics = metrics
        self._failing = steps.failing
        self._full_polls = 0
        self._backlog_is_deep = False

    @property
    def maintenance(self) -> bool:
        """Whether nothing is claimed because an operator said so, as of the last poll."""
        return self._claimer.maintenance

    @property
    def broker_problem(self) -> str | None:
        """What is wrong with Redis, in one line; None if this poller's last request to it succeeded."""
        return self._outgoing.problem

    def poll(self) -> PollReport:
        """Poll once and return what was done. Raises `DatabaseError` if the server is unavailable.

        Every step is its own transaction, committed before any request to Redis. A step that fails is reported and
        skipped. Until reap or reconcile succeeds again, it runs after the claims of each poll.
        """
        try:
            return self._poll()
        except DatabaseError:
            self._recovery.outage()
            raise

    def finish(self) -> None:
        """Mark all claims that were published and have not begun; call this after the last poll.

        Raises `DatabaseError` if the server is unavailable.
        """
        self._outgoing.mark(self._steps, after=0)

    def _poll(self) -> PollReport:
        look = self._look()
        recovered = self._recover(look, before_claims=True)
        recovered += self._steps.run("retry", lambda: self._recovery.retry(look), Recovered())
        room = self._room(look, recovered)
        dispatched = self._dispatch(look, room, recovered)
        recovered += self._recover(look, before_claims=False)
        if look.queued:
            self._outgoing.redirect()
        self._outgoing.mark(self._steps)
        sent = dispatched.sent
        return PollReport(
            lost=recovered.lost,
            requeued=recovered.requeued,
            extended=recovered.extended,
            released=recovered.released + sent.released,
            room=room,
            claimed=dispatched.claimed,
            published=sent.published,
            broker_error=sent.error,
            failing=self._steps.failing,
            next_delay=self._next(dispatched.delay, look),
        )

    def _look(self) -> Look:
        """Return what there is to do; everything, if the look fails."""
        self._failing = self._steps.failing
        look = self._steps.run("look", self._claimer.look, None)
        if look is None:
            self._recovery.look_failed()
            return self._claimer.everything()
        if look.at is not None:
            self._recovery.looked(look.at)
        return look

    def _recover(self, look: Look, *, before_claims: bool) -> Recovered:
        """Reap and reconcile: before claiming, or after claiming if the step failed the last time."""
        found = Recovered()
        if look.at is not None and ("reap" not in self._failing) is before_claims:
            found += self._steps.run("reap", lambda: self._recovery.reap(look), Recovered())
        if ("reconcile" not in self._failing) is before_claims:
            if not look.lapsed:
                self._steps.well("reconcile")
            elif not self._outgoing.probe():
                found += self._steps.run("reconcile", self._recovery.reconcile, Recovered())
        return found

    def _room(self, look: Look, recovered: Recovered) -> int:
        """Return how many runs of the default queue may be claimed now."""
        queued = self._steps.run("room", self._claimer.queued, look.queued) if recovered.released else look.queued
        room = min(self._settings.batch_size, max(0, self._settings.max_queued - queued))
        self._metrics.room(room)
        self._metrics.maintenance(look.maintenance)
        return room

    def _dispatch(self, look: Look, room: int, recovered: Recovered) -> _Dispatched:
        """Claim and publish."""
        if broker_error := self._outgoing.probe():
            return _Dispatched(sent=Sent(error=broker_error), delay=self._outgoing.delay)
        if look.maintenance:
            self._steps.well("claim")
            return _Dispatched()
        full_delay = None
        if room < self._least_room():
            room, full_delay = 0, self._full_delay()
            if not look.named_queues:
                return _Dispatched(delay=full_delay)
        else:
            self._full_polls = 0
        if not (look.pending or recovered.requeued or recovered.released):
            self._steps.well("claim")
            self._backlog_is_deep = False
            return _Dispatched()
        # Runs that this poll requeued or released may be claimed by it.
        nothing: tuple[list[Claim], bool] = ([], False)
        most = self._settings.batch_size if look.named_queues else room
        claims, more = self._steps.run("claim", lambda: self._claimer.claim(most, room), nothing)
        self._metrics.claimed(len(claims))
        self._backlog_is_deep = len(claims) == most
        sent = self._outgoing.send(claims, self._steps) if claims else Sent()
        if sent.published:
            self._metrics.published(sent.published)
        if sent.error is not None:
            self._metrics.released(sent.released, "broker_away")
            return _Dispatched(len(claims), sent, self._outgoing.delay)
        return _Dispatched(len(claims), sent, 0.0 if more else full_delay)

    def _next(self, delay: float | None, look: Look) -> float | None:
        """Return the seconds after which to poll again without waiting for the next tick, or None."""
        delays = [] if delay is None else [delay]
        if look.lost and self._recovery.wait:
            delays.append(self._recovery.wait)
        if self._steps.failing:
            delays.append(_RETRY_SECONDS)
        return min(delays, default=None)

    def _least_room(self) -> int:
        """Return the minimum room for claiming: with a deep backlog one batch, at most half of the queue's limit.

        Otherwise each poll would only replace the runs begun since the last one, in ever smaller messages.
        """
        return min(self._settings.batch_size, max(1, self._settings.max_queued // 2)) if self._backlog_is_deep else 1

    def _full_delay(self) -> float:
        """Return the delay until the next look for room: it starts short and doubles while there is none."""
        self._full_polls = min(self._full_polls + 1, 10)
        return float(min(self._settings.poll_interval, _FULL_QUEUE_SECONDS * 2 ** (self._full_polls - 1)))
