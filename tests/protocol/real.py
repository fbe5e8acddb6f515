"""The verbs of the protocol on the database: those of ours by `Store`, those of the API as the API does them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from orcheo.models import WorkflowRun
from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface
from orcheo_dispatch.shared.ledger.operators.repairs import repair
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.ledger.runs import Ending, Run
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.settings.policies import LostRuns
from tests.protocol.fences import Fences
from tests.protocol.model import MAX_ATTEMPTS
from tests.support.database.runs import VERSION_ID, WORKFLOW_ID, WORKSPACE_ID
from tests.support.database.uncommitted import Uncommitted

_DAY = 86_400.0
_LEASE = 3600.0
_BATCH = 1000
_FIRST_RUN_AT = datetime(2026, 1, 1, tzinfo=UTC)

_CREATE = text("""
INSERT INTO workflow_runs (id, workflow_id, workflow_version_id, status, triggered_by, payload, created_at, updated_at,
                           workspace_id)
VALUES (:id, :workflow, :version, 'pending', 'webhook', CAST(:payload AS jsonb), :created_at, :updated_at, :workspace)
""")
_READ = text("SELECT payload FROM workflow_runs WHERE id = :id")
_WRITE = text("""
UPDATE workflow_runs SET status = :status, payload = CAST(:payload AS jsonb), updated_at = :updated_at WHERE id = :id
""")
_DELETE = text("DELETE FROM workflow_runs WHERE id = :id")
_EXPIRE = text("""
UPDATE orcheo_dispatch.dispatch SET lease_expires_at = now() - interval '1 s'
 WHERE run_id = ANY (:run_ids) AND state <> 'settled'
""")
_AGE = text("""
WITH aged AS (
    UPDATE workflow_runs
       SET updated_at = updated_at - interval '8 days',
           payload = payload || jsonb_build_object('updated_at', orcheo_dispatch.iso(updated_at - interval '8 days'))
)
UPDATE orcheo_dispatch.dispatch
   SET settled_at = settled_at - interval '8 days',
       lease_expires_at = lease_expires_at - interval '8 days'
""")


class Real:
    """The verbs of `Model`, with the same arguments and answers; each is a transaction."""

    def __init__(self, engine: Engine | Uncommitted, fences: Fences) -> None:
        self._engine = cast(Engine, engine)
        self._store = Store(self._engine)
        self._fences = fences

    def create(self, run_id: str, has_slot: bool) -> None:
        number = UUID(run_id).int
        run = WorkflowRun(
            id=UUID(run_id),
            workflow_id=UUID(WORKFLOW_ID),
            workflow_version_id=UUID(VERSION_ID),
            triggered_by="webhook",
            workspace_id=WORKSPACE_ID if has_slot else None,
            created_at=_FIRST_RUN_AT + timedelta(seconds=number),
        )
        run.record_event(actor="webhook", action="run_created")
        self._execute(
            _CREATE,
            id=run_id,
            workflow=WORKFLOW_ID,
            version=VERSION_ID,
            payload=run.model_dump_json(),
            created_at=run.created_at,
            updated_at=run.updated_at,
            workspace=run.workspace_id,
        )

    def cancel(self, run_id: str) -> bool:
        with transaction(self._engine) as connection:
            payload = connection.scalar(_READ, {"id": run_id})
            if payload is None:
                return False
            run = WorkflowRun.model_validate(payload)
            if run.status.is_terminal:
                return False
            run.mark_cancelled(actor="api", reason="because")
            parameters = {"status": run.status.value, "payload": run.model_dump_json(), "updated_at": run.updated_at}
            connection.execute(_WRITE, {"id": run_id, **parameters})
        return True

    def delete(self, run_id: str) -> None:
        self._execute(_DELETE, id=run_id)

    def claim(self, dispatcher: int, room: int) -> list[Claim]:
        return self._fences.counted(
            self._store.claim(
                room,
                triggers=["webhook"],
                every_trigger=False,
                lease=_LEASE,
                dispatcher_id=UUID(int=dispatcher),
            )
        )

    def mark_published(self, claims: Sequence[Claim]) -> None:
        self._store.mark_published(self._fences.real(claims))

    def release(self, claims: Sequence[Claim]) -> int:
        return self._store.release(self._fences.real(claims), reason="test")

    def lapsed(self) -> list[Claim]:
        return self._fences.counted(self._store.lapsed(batch=_BATCH))

    def extend(self, claims: Sequence[Claim]) -> None:
        self._store.extend(self._fences.real(claims), lease=_LEASE, reason="test")

    def begin(self, worker: int, claim: Claim) -> tuple[str, bool | tuple[int, bool]]:
        (claim,) = self._fences.real([claim])
        answer = self._store.begin(claim, worker_id=UUID(int=worker), lease=_LEASE)
        if isinstance(answer, Run):
            return "begun", (answer.attempt, answer.suspect)
        return answer.reason, answer.slot_due_in is not None

    def heartbeat(self, claims: Sequence[Claim]) -> dict[Claim, str | None]:
        held = self._store.heartbeat(self._fences.real(claims), lease=_LEASE)
        ended = self._store.ended_by_api(held)
        return {
            claim: "ended" if real in ended else "running"
            for claim in claims
            for real in self._fences.real([claim])
            if real in held
        }

    def settle(self, claim: Claim, ending: Ending) -> tuple[str, bool, bool] | None:
        (claim,) = self._fences.real([claim])
        settled = self._store.settle(claim, ending)
        return (settled.outcome.value, settled.ended, settled.slot_due_in is not None) if settled else None

    def reap(self, policy: LostRuns) -> list[tuple[Claim, str]]:
        # With a lease of nothing, for it reaps none for a lease after a start of Postgres.
        reaped = self._store.reap(policy, max_attempts=MAX_ATTEMPTS, lease=0, batch=_BATCH)
        return sorted((self._fences.counted([run.claim])[0], run.outcome.value) for run in reaped)

    def reap_orphans(self) -> int:
        return self._store.reap_orphans()

    def adopt_cancelled(self) -> int:
        return self._store.adopt_cancelled(
            triggers=["webhook"], every_trigger=False, younger_than=_DAY, dispatcher_id=UUID(int=0), batch=_BATCH
        )

    def slots_due(self) -> list[str]:
        return sorted(run_id for run_id, _ in self._store.slots_due(older_than=0, batch=_BATCH))

    def slots_returned(self, run_ids: Sequence[str]) -> None:
        self._store.slots_returned(run_ids)

    def prune(self) -> int:
        return self._store.prune(retention=7 * _DAY, batch=_BATCH)

    def repair(self, run_id: str, action: Action) -> tuple[str | None, str | None, str | None]:
        (done,) = repair(self._engine, [run_id], action, Author("ada", Interface.COMMAND, "because"))
        return done.status_before, done.status_after, done.refused

    def expire(self, run_ids: Sequence[str]) -> None:
        self._execute(_EXPIRE, run_ids=list(run_ids))

    def age(self) -> None:
        self._execute(_AGE)

    def _execute(self, statement: Any, **parameters: Any) -> None:
        with transaction(self._engine) as connection:
            connection.execute(statement, parameters)
