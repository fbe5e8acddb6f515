"""Python interface of the ledger: one short transaction per call; arguments and results are immutable values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import Connection

from orcheo_dispatch.shared.database.sifting import Change, sift
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import TURNS_INDEX, Claim, Lapsed, Look
from orcheo_dispatch.shared.ledger.processes import Workers, consumed_queues, live_workers
from orcheo_dispatch.shared.ledger.recovery import Recovering
from orcheo_dispatch.shared.ledger.statements.claim_oldest import CLAIM_GIVEN
from orcheo_dispatch.shared.ledger.statements.look import LOOK, QUEUED, WRITE_NOTHING
from orcheo_dispatch.shared.ledger.statements.publish import EXTEND, LAPSED, MARK_PUBLISHED, RELEASE
from orcheo_dispatch.shared.ledger.turns import NO_LIMITS, Limits, Turns, spend
from orcheo_dispatch.shared.logs.lines import log

MOST_QUEUED = 1_000_000
_PROCESSES_LOCK_TIMEOUT_SECONDS = 0.05


class Store(Recovering):
    """Makes every change of a run's status and of a ledger row, except those of operators (`operators/repairs.py`).

    Each method is one transaction, and raises `DatabaseError` if Postgres is unavailable.
    """

    _consumed: frozenset[str] | None = None

    def claim(
        self,
        room: int,
        *,
        triggers: Sequence[str],
        every_trigger: bool,
        lease: float,
        dispatcher_id: UUID,
        turns: Turns | None = None,
        limits: Limits = NO_LIMITS,
        in_turn: bool = True,
        default_room: int | None = None,
        max_queued: int = MOST_QUEUED,
        consumed: Iterable[str] = (),
    ) -> list[Claim]:
        """Claim up to `room` pending runs for `lease` seconds; no two callers get the same run.

        With `in_turn`, workspaces and workflows take turns, continuing from `turns`; otherwise the oldest runs across
        all workspaces come first. With `limits`, only one caller claims at a time, so that the limits hold exactly,
        provided that all dispatchers have the same limits. Policies of operators apply in any case; `limits` says
        whether one of them limits the number of runs.

        Runs of the default queue are at most `default_room`, by default `room`. In each named queue at most
        `max_queued` claims wait; in turn, either may be exceeded by less than `room`. Runs of named queues other than
        `consumed` are not claimed.
        """
        allowed = {"triggers": list(triggers), "every_trigger": every_trigger}
        rooms = {
            "default_room": room if default_room is None else default_room,
            "max_queued": max_queued,
            "consumed": list(consumed),
        }
        terms = {**allowed, **rooms, "lease": lease, "dispatcher_id": str(dispatcher_id)}
        way = turns or Turns()

        def at_once(connection: Connection, skipped: list[str]) -> list[Claim]:
            return way.claim(connection, room, {**terms, "skipped": skipped}, limits, in_turn=in_turn)

        def choose(connection: Connection, skipped: list[str]) -> list[str]:
            return way.choose(connection, room, {**terms, "skipped": skipped}, limits, in_turn=in_turn)

        def act(connection: Connection, run_ids: Sequence[str]) -> list[Claim]:
            rows = connection.execute(CLAIM_GIVEN, {**terms, "run_ids": list(run_ids)}).all()
            if limits.by_policy and limits.rated:
                spend(connection, Counter((row.workspace, row.workflow) for row in rows))
            return [Claim(row.run_id, row.fence, row.queue) for row in rows]

        change = Change("claim", at_once, choose, act)
        claims = sift(self._engine, self._refused, change, lock_timeout=self._lock_timeout)
        for run_id in way.held:
            self._refused.note_held("claim", run_id)
        return list(claims)

    def look(self, *, triggers: Sequence[str], every_trigger: bool) -> Look:
        """Return what a poll has to do. Raises `DatabaseError` if the server is read-only."""
        (row,) = self._rows(LOOK, triggers=list(triggers), every_trigger=every_trigger, index=TURNS_INDEX)
        if row.read_only:
            # An idle dispatcher writes nothing else. The error that the server raises drops all connections to it.
            self._rows(WRITE_NOTHING)
        return Look(
            lost=row.lost,
            lapsed=row.lapsed,
            retries=row.retries,
            queued=row.queued,
            pending=row.pending,
            in_turn=row.in_turn,
            at=row.at,
            limited=row.limited,
            rated=row.rated,
            named_queues=row.named_queues,
            maintenance=row.maintenance,
        )

    def queued(self) -> int:
        """Return how many claims have not begun yet."""
        return int(self._rows(QUEUED)[0][0])

    def live_workers(self, *, lease: float) -> Workers:
        """Return the workers that were seen within `lease` seconds."""
        return live_workers(self._engine, lease=lease, lock_timeout=self._lock_timeout)

    def consumed_queues(self) -> frozenset[str] | None:
        """Return the queues that live workers consume.

        While the list of processes cannot be read, return the last result, or None if there is none: claims must not
        wait for a lock on that list.
        """
        try:
            self._consumed = consumed_queues(self._engine, lock_timeout=_PROCESSES_LOCK_TIMEOUT_SECONDS)
        except DatabaseError as error:
            log.debug("workers_unknown", reason=str(error))
        return self._consumed

    def mark_published(self, claims: Iterable[Claim]) -> None:
        """Record that the messages of these claims are in Redis, unless their runs have begun."""
        self._sifted_claims("publish", MARK_PUBLISHED, claims)

    def release(self, claims: Iterable[Claim], *, reason: str) -> int:
        """Release claims whose runs never began; return how many of them were still ours."""
        return len(self._sifted_claims("release", RELEASE, claims, reason=reason))

    def lapsed(self, *, batch: int) -> dict[Claim, Lapsed]:
        """Return claims whose leases expired before their runs began."""
        skipped = [*self._refused.skipped("extend"), *self._refused.skipped("release")]
        rows = self._rows(LAPSED, batch=batch, skipped=skipped)
        consumed = self.consumed_queues() if any(row.queue is not None for row in rows) else None
        return {
            Claim(row.run_id, row.fence, row.queue): Lapsed(
                row.reason, served=row.queue is None or consumed is None or row.queue in consumed
            )
            for row in rows
        }

    def extend(self, claims: Iterable[Claim], *, lease: float, reason: str) -> int:
        """Extend the leases of these claims by `lease` seconds from now; return how many were extended."""
        return len(self._sifted_claims("extend", EXTEND, claims, lease=lease, reason=reason))
