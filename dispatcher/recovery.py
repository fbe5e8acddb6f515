"""Recover runs and claims whose lease has expired: reap runs, reconcile claims with the messages in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from orcheo_dispatch.dispatcher.publishing.broker_gate import BrokerGate
from orcheo_dispatch.shared.ledger.model import Look, Outcome
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import Retries

_WAITING, _DELIVERED = "waiting in Redis", "delivered"


class ReapGate:
    """Closed for a while after polls were delayed: whatever delayed them may have delayed heartbeats as well.

    Workers then get two heartbeat intervals to renew their leases, or one lease after an outage of the server.
    """

    def __init__(self, *, lease: float, heartbeat: float) -> None:
        self._lease = lease
        self._grace = min(lease, 2 * heartbeat)
        self._looked_at: float | None = None
        self._not_before = float("-inf")
        self._failed = False
        self._outage_ended = float("-inf")

    def looked(self, at: float) -> None:
        """Note that a poll read the ledger; `at` is the database's time."""
        held_up = self._looked_at is not None and at - self._looked_at > self._lease
        if self._failed or held_up:
            self._not_before = at + self._grace
        # A clock that was set back must not keep the gate closed for longer.
        self._not_before = min(self._not_before, at + self._grace)
        self._looked_at, self._failed = at, False

    def failed(self) -> None:
        """Note that a poll could not read the ledger, e.g. because a table was locked."""
        self._failed = True

    def outage(self) -> None:
        """Note that the server was unavailable."""
        self._failed = True
        self._outage_ended = time.monotonic()

    @property
    def wait(self) -> float:
        """Seconds until runs may be reaped; 0 if they may be reaped now."""
        if self._failed or self._looked_at is None:
            return self._grace
        after_outage = self._outage_ended + self._lease - time.monotonic()
        return max(0.0, self._not_before - self._looked_at, after_outage)


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many runs and claims were recovered, and how."""

    lost: int = 0
    requeued: int = 0
    extended: int = 0
    released: int = 0

    def __add__(self, other: Recovered) -> Recovered:
        """Return the sums."""
        return Recovered(
            self.lost + other.lost,
            self.requeued + other.requeued,
            self.extended + other.extended,
            self.released + other.released,
        )


class Recovery:
    """Reaps and reconciles, for a poller. Both raise `DatabaseError`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        broker_gate: BrokerGate,
        metrics: DispatcherMetrics,
        on_reaped: Callable[[list[str]], None],
    ) -> None:
        """`on_reaped` gets the ids of runs that were ended or requeued, to return their slots. It must not block."""
        self._settings = settings
        self._store = store
        self._broker_gate = broker_gate
        self._reap_gate = ReapGate(lease=settings.worker_lease, heartbeat=settings.heartbeat)
        self._metrics = metrics
        self._on_reaped = on_reaped

    @property
    def wait(self) -> float:
        """Seconds until runs may be reaped; 0 if they may be reaped now."""
        return self._reap_gate.wait

    def looked(self, at: float) -> None:
        """Note that a poll read the ledger; `at` is the database's time."""
        self._reap_gate.looked(at)

    def look_failed(self) -> None:
        """Note that a poll could not read the ledger."""
        self._reap_gate.failed()

    def outage(self) -> None:
        """Note that the server was unavailable."""
        self._reap_gate.outage()

    def reap(self, look: Look) -> Recovered:
        """End or requeue the runs whose worker is lost."""
        if not look.lost or self._reap_gate.wait:
            return Recovered()
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
            self._on_reaped([run.claim.run_id for run in reaped])
        requeued = sum(run.outcome is Outcome.REQUEUED for run in reaped)
        self._metrics.reaped(lost=sum(run.outcome is Outcome.LOST for run in reaped), requeued=requeued)
        return Recovered(lost=len(reaped) - requeued, requeued=requeued)

    def retry(self, look: Look) -> Recovered:
        """Make failed runs pending again whose next attempt is due."""
        if not look.retries:
            return Recovered()
        from_start = self._settings.retries is Retries.START
        retried = self._store.retry(from_start=from_start, batch=self._settings.batch_size)
        for run_id, number in retried.items():
            log.info("run_retried", run_id=run_id, retry=number)
        self._metrics.retried(len(retried))
        return Recovered(requeued=len(retried))

    def reconcile(self) -> Recovered:
        """Extend claims whose messages Redis still holds; release claims whose messages it lost.

        A message that a worker has received is no longer in Redis: if the run has not begun within one lease, the
        message was lost with its worker. Workers of earlier releases leave it in Redis, and get one more lease.
        """
        lapsed = self._store.lapsed(batch=max(self._settings.batch_size, self._settings.max_queued))
        if not lapsed:
            return Recovered()
        held = self._broker_gate.held(lapsed.keys())
        if held is None:
            return Recovered()
        # The message of a claim that no worker will take is given up: a policy may name another queue by now.
        waiting = [claim for claim, found in lapsed.items() if claim in held.waiting and found.served]
        delivered = [claim for claim, found in lapsed.items() if claim in held.delivered and found.reason != _DELIVERED]
        missing = lapsed.keys() - {*waiting, *delivered}
        extended = self._store.extend(waiting, lease=self._settings.lease, reason=_WAITING) if waiting else 0
        if delivered:
            extended += self._store.extend(delivered, lease=self._settings.lease, reason=_DELIVERED)
        released = self._store.release(missing, reason="message_lost") if missing else 0
        self._metrics.extended(extended)
        self._metrics.released(released, "message_lost")
        if extended or released:
            log.warning("claims_reconciled", extended=extended, released=released)
        return Recovered(extended=extended, released=released)
