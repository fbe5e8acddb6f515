"""The ledger, as Python calls: one short transaction each, rows in, small frozen values out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from shared import statements
from shared.database import in_transaction
from shared.errors import DatabaseError
from shared.ledger import ACTOR_DISPATCHER, ACTOR_WORKER, TURNS_INDEX, Admission, Claim, Look, Outcome, State
from shared.logs import log
from shared.processes import Workers, live_workers
from shared.runs import STALE, UNKNOWN, Ending, NotBegun, Reaped, Run, Settled
from shared.settings import LostRuns
from shared.turns import NO_LIMITS, Limits, Turns

_MANY_ROWS = 32
"""From so many on it pays to plan a statement for them: some milliseconds."""

__all__ = ["STALE", "UNKNOWN", "Ending", "NotBegun", "Reaped", "Run", "Settled", "Store"]


class Store:
    """Every change of a run's status, and every row of the ledger, goes through here.

    Each method is one transaction, but for claims of one statement, and raises `DatabaseError` where Postgres is away.
    """

    def __init__(self, engine: Engine, *, worker_id: UUID | None = None) -> None:
        """With `worker_id`, `heartbeat` and `settle` touch the runs of this worker alone, whatever their fences."""
        self._engine = engine
        self._worker_id = str(worker_id) if worker_id else None

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
        self._rows(statements.MARK_PUBLISHED, lease=lease, **_arrays(claims))

    def release(self, claims: Iterable[Claim], *, reason: str) -> int:
        """Give claims back that never began; return how many of them were still ours."""
        return len(self._rows(statements.RELEASE, reason=reason, **_arrays(claims)))

    def begin(self, claim: Claim, *, worker_id: UUID, lease: float) -> Run | NotBegun:
        """Begin the run of one claim; see `begin_all`."""
        return self.begin_all([claim], worker_id=worker_id, lease=lease)[0]

    def begin_all(
        self, claims: Sequence[Claim], *, worker_id: UUID, lease: float, lock_timeout: float | None = None
    ) -> list[Run | NotBegun]:
        """Begin the runs of these claims, each once and under its own fence; return an answer to each, in order.

        Every later call with the same fence is told `stale`. Raises `RowLockedError` where somebody holds one of
        the runs for `lock_timeout` seconds; then none has begun.
        """
        rows = self._rows(
            statements.BEGIN,
            lock_timeout,
            lease=lease,
            worker_id=str(worker_id),
            actor=ACTOR_WORKER,
            **_arrays(claims),
        )
        answers = {Claim(row.run_id, row.fence): _begun(row) for row in rows}
        missing = [claim.run_id for claim in claims if claim not in answers]
        known = self.known(missing) if missing else frozenset()
        return [answers.get(claim) or NotBegun(claim, STALE if claim.run_id in known else UNKNOWN) for claim in claims]

    def known(self, run_ids: Sequence[str]) -> frozenset[str]:
        """Return those of these runs that the ledger has a row of, whatever their state."""
        return frozenset(row.run_id for row in self._rows(statements.KNOWN, run_ids=list(run_ids)))

    def settle(self, claim: Claim, ending: Ending, *, actor: str = ACTOR_WORKER) -> Settled | None:
        """End one run; see `settle_all`."""
        return self.settle_all({claim: ending}, actor=actor).get(claim)

    def settle_all(
        self, endings: Mapping[Claim, Ending], *, actor: str = ACTOR_WORKER, lock_timeout: float | None = None
    ) -> dict[Claim, Settled]:
        """End runs, each under its fence; what is not returned is not ours any more, and nothing of it was changed.

        Raises `RowLockedError` where somebody holds one of the runs for `lock_timeout` seconds, and
        `RefusedError` where Postgres cannot store one of the endings; then none was settled.
        """
        each = endings.values()
        rows = self._rows(
            statements.SETTLE,
            lock_timeout,
            run_ids=[claim.run_id for claim in endings],
            fences=[claim.fence for claim in endings],
            outcomes=[ending.outcome.value for ending in each],
            statuses=[ending.status for ending in each],
            actions=[ending.action for ending in each],
            reasons=[ending.reason for ending in each],
            metadata=[json.dumps(dict(ending.metadata)) for ending in each],
            changes=[ending.changes for ending in each],
            refunds=[ending.refund for ending in each],
            suspects=[ending.suspect for ending in each],
            actor=actor,
            worker_id=self._worker_id,
        )
        return {
            Claim(row.run_id, row.fence): Settled(
                Outcome(row.outcome), bool(row.ended), row.workspace_id if row.slot == "due" else None
            )
            for row in rows
        }

    def heartbeat(self, claims: Iterable[Claim], *, lease: float) -> dict[Claim, str | None]:
        """Extend the leases of running claims; return those still held, with the run's status in the API."""
        rows = self._rows(statements.HEARTBEAT, lease=lease, worker_id=self._worker_id, **_arrays(claims))
        return {Claim(row.run_id, row.fence): row.status for row in rows}

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

    def close_traces(self, run_ids: Iterable[str]) -> int:
        """Close the traces of these runs as far as they are open and the runs have ended; return how many.

        Never raises: a trace is not worth a poll or a run. Orcheo makes the tables when it first writes a trace.
        """
        try:
            return len(self._rows(statements.CLOSE_TRACES, run_ids=list(run_ids)))
        except DatabaseError as error:
            log.warning("traces_not_closed", reason=str(error))
            return 0

    def lapsed(self, *, batch: int) -> dict[Claim, str | None]:
        """Return claims that nobody answered for a lease, with the reason of their last extension."""
        return {Claim(row.run_id, row.fence): row.reason for row in self._rows(statements.LAPSED, batch=batch)}

    def extend(self, claims: Iterable[Claim], *, lease: float, reason: str) -> None:
        """Give these claims another lease."""
        self._rows(statements.EXTEND, lease=lease, reason=reason, **_arrays(claims))

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

    def _rows(self, statement: Any, lock_timeout: float | None = None, /, **parameters: Any) -> Sequence[Any]:
        many_rows = len(parameters.get("run_ids", ())) >= _MANY_ROWS

        def execute(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()

        return in_transaction(self._engine, execute, lock_timeout=lock_timeout, many_rows=many_rows)


def _begun(row: Any) -> Run | NotBegun:
    claim = Claim(row.run_id, row.fence)
    if row.state != State.RUNNING:
        return NotBegun(claim, row.reason, row.workspace_id if row.slot == "due" else None, rejected=row.rejected)
    return Run(
        run_id=claim.run_id,
        fence=claim.fence,
        attempt=row.attempts,
        workflow_id=row.workflow_id,
        workflow_version_id=row.workflow_version_id,
        workspace_id=row.workspace_id,
        triggered_by=row.triggered_by,
        inputs=row.inputs or {},
        runnable_config=row.runnable_config or {},
        pending_for=row.pending_for,
        queued_for=row.queued_for,
        suspect=row.suspect,
    )


def _arrays(claims: Iterable[Claim]) -> dict[str, list[Any]]:
    ordered = sorted(claims)
    return {"run_ids": [claim.run_id for claim in ordered], "fences": [claim.fence for claim in ordered]}
