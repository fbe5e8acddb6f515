"""Admit, reap and adopt runs, note returned slots, and prune rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orcheo_dispatch.shared.database.sifting import Change
from orcheo_dispatch.shared.ledger.executions import Executing
from orcheo_dispatch.shared.ledger.model import ACTOR_DISPATCHER, Admission, Claim, Outcome, Push
from orcheo_dispatch.shared.ledger.runs import Reaped
from orcheo_dispatch.shared.ledger.statements.admit import ADMIT_LABELLED, ADMIT_PUSHED
from orcheo_dispatch.shared.ledger.statements.recover import (
    ADOPT_CANCELLED,
    COUNT_ENDED,
    FORGET_QUESTIONS,
    PRUNE,
    PRUNE_ENDED,
    REAP,
    REAP_ORPHANS,
    RETRY,
    SLOTS_DUE,
    SLOTS_RETURNED,
)
from orcheo_dispatch.shared.settings.policies import LostRuns


class Recovering(Executing):
    """Each method is one transaction, and raises `DatabaseError` if Postgres is unavailable."""

    def admit_pushed(
        self, pushes: Iterable[Push], *, triggers: Sequence[str], every_trigger: bool, dispatcher_id: UUID
    ) -> dict[Push, Admission]:
        """Admit runs that the API pushed, whatever their labels. A push must name the run's own workspace.

        A run that Postgres refuses to admit is remembered as refused, and its push counts as answered. A push that is
        missing from the result was not tried, because many others were refused.
        """
        given = sorted(set(pushes), key=lambda push: (push.run_id, push.workspace_id or ""))

        def act(connection: Connection, run_ids: Sequence[str]) -> Sequence[Any]:
            wanted = frozenset(run_ids)
            chosen = [push for push in given if push.run_id in wanted]
            parameters = {
                "run_ids": [push.run_id for push in chosen],
                "workspace_ids": [push.workspace_id for push in chosen],
                "triggers": list(triggers),
                "every_trigger": every_trigger,
                "dispatcher_id": str(dispatcher_id),
            }
            return connection.execute(ADMIT_PUSHED, parameters).all()

        def run_ids(skipped: Iterable[str]) -> list[str]:
            return sorted({push.run_id for push in given} - set(skipped))

        rows = self._sift(
            Change(
                "push",
                lambda connection, skipped: act(connection, run_ids(skipped)),
                lambda _connection, skipped: run_ids(skipped),
                act,
            ),
            rows=len(given),
        )
        refused = frozenset(self._refused.skipped("push"))
        answered = {push: Admission(True) for push in given if push.run_id in refused}
        found = {Push(row.run_id, row.workspace_id): Admission(row.known, row.admitted, row.refused) for row in rows}
        return answered | found

    def admit_labelled(
        self, *, triggers: Sequence[str], every_trigger: bool, older_than: float, dispatcher_id: UUID, batch: int
    ) -> list[str]:
        """Admit runs of manual dispatches whose push was lost; return their ids."""
        rows = self._sifted(
            "admit",
            ADMIT_LABELLED,
            triggers=list(triggers),
            every_trigger=every_trigger,
            older_than=older_than,
            dispatcher_id=str(dispatcher_id),
            batch=batch,
        )
        return [row.run_id for row in rows]

    def reap(self, policy: LostRuns, *, max_attempts: int, lease: float, batch: int) -> list[Reaped]:
        """End or requeue runs whose lease has expired; do nothing for `lease` seconds after Postgres starts."""
        rows = self._sifted(
            "reap",
            REAP,
            policy="requeue" if policy.requeues else policy.value,
            max_attempts=max_attempts,
            lease=lease,
            batch=batch,
            actor=ACTOR_DISPATCHER,
        )
        return [Reaped(Claim(r.run_id, r.fence), Outcome(r.outcome), r.worker_id, r.workflow_id) for r in rows]

    def retry(self, *, from_start: bool, batch: int) -> dict[str, int]:
        """Make failed runs pending again whose next attempt is due; return the number of the retry, by run."""
        rows = self._sifted("retry", RETRY, from_start=from_start, batch=batch, actor=ACTOR_DISPATCHER)
        return {row.run_id: row.retries for row in rows}

    def forget_questions(self, *, batch: int) -> list[str]:
        """Forget what ended runs were waiting for; return their ids."""
        return [row.run_id for row in self._sifted("questions", FORGET_QUESTIONS, batch=batch)]

    def reap_orphans(self, *, batch: int = 1000) -> int:
        """Settle the rows of runs that were deleted from the API's table; return how many."""
        return len(self._sifted("orphans", REAP_ORPHANS, batch=batch))

    def adopt_cancelled(
        self, *, triggers: Sequence[str], every_trigger: bool, younger_than: float, dispatcher_id: UUID, batch: int
    ) -> int:
        """Record runs that were cancelled while unclaimed, so that their slots are returned; return how many."""
        rows = self._sifted(
            "adopt",
            ADOPT_CANCELLED,
            triggers=list(triggers),
            every_trigger=every_trigger,
            younger_than=younger_than,
            dispatcher_id=str(dispatcher_id),
            batch=batch,
        )
        return len(rows)

    def slots_due(self, *, older_than: float, batch: int) -> list[tuple[str, str]]:
        """Return `(run_id, workspace_id)` of each slot that has been due for `older_than` seconds."""
        skipped = self._refused.skipped("slots")
        rows = self._rows(SLOTS_DUE, older_than=older_than, batch=batch, skipped=skipped)
        return [(row.run_id, row.workspace_id) for row in rows]

    def slots_returned(self, run_ids: Iterable[str]) -> None:
        """Record that the slots of these runs were returned."""
        given = sorted(set(run_ids))

        def act(connection: Connection, run_ids: Sequence[str]) -> Sequence[Any]:
            return connection.execute(SLOTS_RETURNED, {"run_ids": list(run_ids)}).all()

        self._sift(
            Change("slots", lambda connection, _skipped: act(connection, given), lambda _c, _skipped: given, act),
            rows=len(given),
        )

    def prune(self, *, retention: float, batch: int) -> int:
        """Delete rows settled more than `retention` seconds ago; return how many."""
        return len(self._sifted("prune", PRUNE, retention=retention, batch=batch))

    def count_ended(self) -> None:
        """Count claims that ended up to two minutes ago, at most six hours of them, and prune counts after a month."""
        self._rows(COUNT_ENDED)
        self._rows(PRUNE_ENDED)
