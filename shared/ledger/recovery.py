"""Admit, reap and adopt runs, note returned slots, and prune rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orcheo_dispatch.shared.database.refused import raised_by_function
from orcheo_dispatch.shared.database.sifting import Change
from orcheo_dispatch.shared.errors import DatabaseError, RefusedError
from orcheo_dispatch.shared.ledger.executions import Executing
from orcheo_dispatch.shared.ledger.model import ACTOR_DISPATCHER, Admission, Claim, Outcome
from orcheo_dispatch.shared.ledger.runs import Reaped
from orcheo_dispatch.shared.ledger.statements.admit import ADMIT_LABELLED, ADMIT_PUSHED
from orcheo_dispatch.shared.ledger.statements.count import COUNT_ENDED, PRUNE_ENDED
from orcheo_dispatch.shared.ledger.statements.recover import (
    ADOPT_CANCELLED,
    PRUNE,
    REAP,
    REAP_ORPHANS,
    SLOTS_DUE,
    SLOTS_RETURNED,
)
from orcheo_dispatch.shared.settings.policies import LostRuns


class Recovering(Executing):
    """Each method is one transaction, and raises `DatabaseError` where Postgres is unavailable."""

    def admit_pushed(
        self,
        run_id: str,
        workspace_id: str | None,
        *,
        triggers: Sequence[str],
        every_trigger: bool,
        dispatcher_id: UUID,
    ) -> Admission:
        """Have this run claimed whatever its label: the API pushed it. The push must name the run's own workspace.

        A run that Postgres refuses to admit is remembered as such, and its push counts as answered.
        """
        try:
            rows = self._rows(
                ADMIT_PUSHED,
                run_id=run_id,
                workspace_id=workspace_id,
                triggers=list(triggers),
                every_trigger=every_trigger,
                dispatcher_id=str(dispatcher_id),
            )
        except DatabaseError as error:
            cause = error.__cause__
            if cause is None or not (isinstance(error, RefusedError) or raised_by_function(cause)):
                raise
            self._refused.note("push", run_id, cause)
            return Admission(True)
        return Admission(True, rows[0].admitted, rows[0].refused) if rows else Admission(False)

    def admit_labelled(
        self, *, triggers: Sequence[str], every_trigger: bool, older_than: float, dispatcher_id: UUID, batch: int
    ) -> list[str]:
        """Have runs of manual dispatches claimed whose push was lost; return which."""
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
        """End or requeue runs whose worker missed its lease; none for `lease` seconds after a start of Postgres."""
        rows = self._sifted(
            "reap",
            REAP,
            policy=policy.value,
            max_attempts=max_attempts,
            lease=lease,
            batch=batch,
            actor=ACTOR_DISPATCHER,
        )
        return [Reaped(Claim(r.run_id, r.fence), Outcome(r.outcome), r.worker_id, r.workflow_id) for r in rows]

    def reap_orphans(self, *, batch: int = 1000) -> int:
        """Settle the rows of runs that are gone from the API's table; return how many."""
        return len(self._sifted("orphans", REAP_ORPHANS, batch=batch))

    def adopt_cancelled(
        self, *, triggers: Sequence[str], every_trigger: bool, younger_than: float, dispatcher_id: UUID, batch: int
    ) -> int:
        """Enter runs that were cancelled before any claim, so that their slots are given back; return how many."""
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
        """Return `(run_id, workspace_id)` of the slots that have been due for `older_than` seconds."""
        skipped = self._refused.skipped("slots")
        rows = self._rows(SLOTS_DUE, older_than=older_than, batch=batch, skipped=skipped)
        return [(row.run_id, row.workspace_id) for row in rows]

    def slots_returned(self, run_ids: Iterable[str]) -> None:
        """Note that these runs' slots were given back."""
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
        """Count what ended up to two minutes ago, six hours of it at most, and forget what ended a month ago."""
        self._rows(COUNT_ENDED)
        self._rows(PRUNE_ENDED)
