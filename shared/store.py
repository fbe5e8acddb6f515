"""The ledger, as Python calls: one short transaction each, rows in, small frozen values out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from shared import statements
from shared.database import in_transaction
from shared.executing import Executing, arrays
from shared.ledger import ACTOR_DISPATCHER, TURNS_INDEX, Admission, Claim, Look, Outcome
from shared.processes import Workers, live_workers
from shared.runs import STALE, UNKNOWN, Ending, NotBegun, Reaped, Run, Settled
from shared.settings import LostRuns
from shared.turns import NO_LIMITS, Limits, Turns

__all__ = ["STALE", "UNKNOWN", "Ending", "NotBegun", "Reaped", "Run", "Settled", "Store"]


class Store(Executing):
    """Every change of a run's status, and every row of the ledger, goes through here.

    Each method is one transaction, but for claims of one statement, and raises `DatabaseError` where Postgres is away.
    """

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
    ) -> list[Claim]:
        """Claim up to `room` pending runs for `lease` seconds; no two callers get the same.

        In turn by workspace and workflow, from where `turns` is; without `in_turn` the oldest first, whosever they are.
        With `limits` one caller claims at a time, so that they hold exactly, if all dispatchers have the same.
        """
        allowed = {"triggers": list(triggers), "every_trigger": every_trigger}
        terms = {**allowed, "lease": lease, "dispatcher_id": str(dispatcher_id)}
        way = turns or Turns()
        return in_transaction(
            self._engine, lambda connection: way.claim(connection, room, terms, limits, in_turn=in_turn)
        )

    def look(self, *, triggers: Sequence[str], every_trigger: bool) -> Look:
        """Return what there is for a poll to do."""
        (row,) = self._rows(statements.LOOK, triggers=list(triggers), every_trigger=every_trigger, index=TURNS_INDEX)
        return Look(row.lost, row.lapsed, row.queued, row.pending, row.in_turn)

    def admit_pushed(
        self,
        run_id: str,
        workspace_id: str | None,
        *,
        triggers: Sequence[str],
        every_trigger: bool,
        dispatcher_id: UUID,
    ) -> Admission:
        """Have this run claimed whatever its label: the API pushed it. The push must name the run's own workspace."""
        rows = self._rows(
            statements.ADMIT_PUSHED,
            run_id=run_id,
            workspace_id=workspace_id,
            triggers=list(triggers),
            every_trigger=every_trigger,
            dispatcher_id=str(dispatcher_id),
        )
        return Admission(True, rows[0].admitted, rows[0].refused) if rows else Admission(False)

    def admit_labelled(
        self, *, triggers: Sequence[str], every_trigger: bool, older_than: float, dispatcher_id: UUID, batch: int
    ) -> list[str]:
        """Have runs of manual dispatches claimed whose push was lost; return which."""
        rows = self._rows(
            statements.ADMIT_LABELLED,
            triggers=list(triggers),
            every_trigger=every_trigger,
            older_than=older_than,
            dispatcher_id=str(dispatcher_id),
            batch=batch,
        )
        return [row.run_id for row in rows]

    def queued(self) -> int:
        """Return how many claims have not begun yet."""
        return int(self._rows(statements.QUEUED)[0][0])

    def live_workers(self, *, lease: float) -> Workers:
        """Return the workers that were seen within `lease` seconds."""
        return live_workers(self._engine, lease=lease)

    def mark_published(self, claims: Iterable[Claim], *, lease: float) -> None:
        """Note that the messages of these claims are in Redis."""
        self._rows(statements.MARK_PUBLISHED, lease=lease, **arrays(claims))

    def release(self, claims: Iterable[Claim], *, reason: str) -> int:
        """Give claims back that never began; return how many of them were still ours."""
        return len(self._rows(statements.RELEASE, reason=reason, **arrays(claims)))

    def reap(self, policy: LostRuns, *, max_attempts: int, lease: float, batch: int) -> list[Reaped]:
        """End or requeue runs whose worker missed its lease; none for `lease` seconds after a start of Postgres."""
        rows = self._rows(
            statements.REAP,
            policy=policy.value,
            max_attempts=max_attempts,
            lease=lease,
            batch=batch,
            actor=ACTOR_DISPATCHER,
        )
        return [Reaped(Claim(r.run_id, r.fence), Outcome(r.outcome), r.worker_id, r.workflow_id) for r in rows]

    def reap_orphans(self) -> int:
        """Settle the rows of runs that are gone from the API's table; return how many."""
        return len(self._rows(statements.REAP_ORPHANS))

    def lapsed(self, *, batch: int) -> dict[Claim, str | None]:
        """Return claims that nobody answered for a lease, with the reason of their last extension."""
        return {Claim(row.run_id, row.fence): row.reason for row in self._rows(statements.LAPSED, batch=batch)}

    def extend(self, claims: Iterable[Claim], *, lease: float, reason: str) -> None:
        """Give these claims another lease."""
        self._rows(statements.EXTEND, lease=lease, reason=reason, **arrays(claims))

    def adopt_cancelled(
        self, *, triggers: Sequence[str], every_trigger: bool, younger_than: float, dispatcher_id: UUID, batch: int
    ) -> int:
        """Enter runs that were cancelled before any claim, so that their slots are given back; return how many."""
        rows = self._rows(
            statements.ADOPT_CANCELLED,
            triggers=list(triggers),
            every_trigger=every_trigger,
            younger_than=younger_than,
            dispatcher_id=str(dispatcher_id),
            batch=batch,
        )
        return len(rows)

    def slots_due(self, *, older_than: float, batch: int) -> list[tuple[str, str]]:
        """Return `(run_id, workspace_id)` of the slots that have been due for `older_than` seconds."""
        rows = self._rows(statements.SLOTS_DUE, older_than=older_than, batch=batch)
        return [(row.run_id, row.workspace_id) for row in rows]

    def slots_returned(self, run_ids: Iterable[str]) -> None:
        """Note that these runs' slots were given back."""
        self._rows(statements.SLOTS_RETURNED, run_ids=list(run_ids))

    def prune(self, *, retention: float, batch: int) -> int:
        """Delete rows settled more than `retention` seconds ago; return how many."""
        return len(self._rows(statements.PRUNE, retention=retention, batch=batch))

    def count_ended(self) -> None:
        """Count what ended up to two minutes ago, six hours of it at most, and forget what ended a month ago."""
        self._rows(statements.COUNT_ENDED)
        self._rows(statements.PRUNE_ENDED)
