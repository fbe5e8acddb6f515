"""Begin, keep alive and settle runs; each call takes any number of them.

Begin, heartbeat and settle never wait for a row that another session has locked: they report such runs, and the caller
tries again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.changes import Changes, arrays
from orcheo_dispatch.shared.ledger.model import ACTOR_WORKER, Claim, Outcome, State
from orcheo_dispatch.shared.ledger.runs import LOCKED, STALE, UNKNOWN, Ending, NotBegun, Rules, Run, Settled, Settlement
from orcheo_dispatch.shared.ledger.statements.execute import (
    BEGIN,
    BEGUN,
    ENDED_BY_API,
    HEARTBEAT,
    KNOWN,
    REFUSE,
    SETTLE,
)
from orcheo_dispatch.shared.ledger.statements.recover import CLOSE_TRACES
from orcheo_dispatch.shared.logs.lines import log


class Executing(Changes):
    """The half of `Store` that workers use. `lock_timeout` and `timeout` are in seconds and apply to each statement."""

    def begin(self, claim: Claim, *, worker_id: UUID, lease: float) -> Run | NotBegun:
        """Begin the run of one claim; see `begin_all`."""
        return self.begin_all([claim], worker_id=worker_id, lease=lease)[0]

    def begin_all(
        self,
        claims: Sequence[Claim],
        *,
        worker_id: UUID,
        lease: float,
        lock_timeout: float | None = None,
        timeout: float | None = None,
    ) -> list[Run | NotBegun]:
        """Begin the runs of these claims, each once and under its own fence; return one answer per claim, in order.

        Every later call with the same fence returns `stale`. A run whose row another session has locked returns
        `locked`.
        """
        rows = self._rows(
            BEGIN,
            lock_timeout,
            timeout,
            lease=lease,
            worker_id=str(worker_id),
            actor=ACTOR_WORKER,
            **arrays(claims),
        )
        answers = {Claim(row.run_id, row.fence): _begun(row) for row in rows}
        missing = [claim.run_id for claim in claims if claim not in answers]
        known = self.known(missing) if missing else frozenset()
        return [answers.get(claim) or NotBegun(claim, STALE if claim.run_id in known else UNKNOWN) for claim in claims]

    def begun_by(
        self,
        worker_id: UUID,
        claims: Iterable[Claim],
        *,
        lease: float,
        lock_timeout: float | None = None,
        timeout: float | None = None,
    ) -> list[Run | NotBegun]:
        """Return the runs among `claims` that this worker has begun, as `begin_all` returned them, with new leases.

        A run whose row another session has locked returns `locked`; its lease is not extended.
        """
        rows = self._rows(BEGUN, lock_timeout, timeout, lease=lease, worker_id=str(worker_id), **arrays(claims))
        return [_begun(row) for row in rows]

    def refuse(self, errors: Mapping[Claim, str], *, worker_id: UUID, lock_timeout: float) -> dict[Claim, str | None]:
        """Fail pending runs that cannot begin, each with its error; return the workspace in which each owes a slot."""
        rows = self._rows(
            REFUSE,
            lock_timeout,
            run_ids=[claim.run_id for claim in errors],
            fences=[claim.fence for claim in errors],
            errors=list(errors.values()),
            worker_id=str(worker_id),
            actor=ACTOR_WORKER,
        )
        return {Claim(row.run_id, row.fence): row.workspace_id if row.slot == "due" else None for row in rows}

    def known(self, run_ids: Sequence[str]) -> frozenset[str]:
        """Return the runs among `run_ids` that have a row in the ledger, whatever its state."""
        return frozenset(row.run_id for row in self._rows(KNOWN, run_ids=list(run_ids)))

    def settle(self, claim: Claim, ending: Ending, *, actor: str = ACTOR_WORKER) -> Settled | None:
        """End one run; see `settle_all`."""
        return self.settle_all({claim: ending}, actor=actor).settled.get(claim)

    def settle_all(
        self,
        endings: Mapping[Claim, Ending],
        *,
        actor: str = ACTOR_WORKER,
        lock_timeout: float | None = None,
        timeout: float | None = None,
    ) -> Settlement:
        """End runs, each under its fence.

        Raises `DatabaseError` if Postgres is unavailable or refuses one of the endings; in that case none is settled.
        """
        each = endings.values()
        rows = self._rows(
            SETTLE,
            lock_timeout,
            timeout,
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
            retries=[ending.retry for ending in each],
            checkpoints=[ending.checkpoint_id for ending in each],
            interrupts=[ending.interrupts for ending in each],
            keeps_slot=[ending.keeps_slot for ending in each],
            actor=actor,
            worker_id=self._worker_id,
        )
        return Settlement(
            {
                Claim(row.run_id, row.fence): Settled(
                    Outcome(row.outcome), bool(row.ended), row.workspace_id if row.slot == "due" else None, row.retry_at
                )
                for row in rows
                if row.outcome is not None
            },
            frozenset(Claim(row.run_id, row.fence) for row in rows if row.outcome is None),
        )

    def heartbeat(
        self,
        claims: Iterable[Claim],
        *,
        lease: float,
        lock_timeout: float | None = None,
        timeout: float | None = None,
    ) -> dict[Claim, bool]:
        """Extend the leases of running claims; return those still held, with whether their leases were extended.

        A lease is not extended while another session has its row locked. The API's table is neither read nor locked.
        """
        rows = self._rows(HEARTBEAT, lock_timeout, timeout, lease=lease, worker_id=self._worker_id, **arrays(claims))
        return {Claim(row.run_id, row.fence): row.renewed for row in rows}

    def ended_by_api(self, claims: Iterable[Claim], *, lock_timeout: float | None = None) -> frozenset[Claim]:
        """Return the running claims among `claims` whose runs the API has ended or deleted."""
        rows = self._rows(ENDED_BY_API, lock_timeout, worker_id=self._worker_id, **arrays(claims))
        return frozenset(Claim(row.run_id, row.fence) for row in rows)

    def close_traces(self, run_ids: Iterable[str], *, lock_timeout: float | None = None) -> int:
        """Close the open traces of those of these runs that have ended; return how many.

        Never raises: a poll or a run must not fail because of a trace. The tables may be missing, because Orcheo
        creates them when it first writes a trace.
        """
        try:
            return len(self._rows(CLOSE_TRACES, lock_timeout, run_ids=list(run_ids)))
        except DatabaseError as error:
            log.warning("traces_not_closed", reason=str(error))
            return 0


def _begun(row: Any) -> Run | NotBegun:
    claim = Claim(row.run_id, row.fence)
    if row.state == LOCKED:
        return NotBegun(claim, LOCKED)
    if row.state != State.RUNNING:
        return NotBegun(claim, row.reason, row.workspace_id if row.slot == "due" else None, rejected=row.rejected)
    inputs, fault = _object_of(row.inputs, "inputs")
    runnable_config, other_fault = _object_of(row.runnable_config, "configuration")
    return Run(
        run_id=claim.run_id,
        fence=claim.fence,
        attempt=row.attempts,
        workflow_id=row.workflow_id,
        workflow_version_id=row.workflow_version_id,
        workspace_id=row.workspace_id,
        triggered_by=row.triggered_by,
        inputs=inputs,
        runnable_config=runnable_config,
        pending_for=row.pending_for,
        queued_for=row.queued_for,
        suspect=row.suspect,
        first=row.first,
        rules=Rules.of(row.policy),
        fault=fault or other_fault,
    )


def _object_of(text: str | None, what: str) -> tuple[Mapping[str, Any], str | None]:
    """Return the JSON object in `text`, and the reason if it cannot be used. No text makes this raise."""
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError, MemoryError) as error:
        # A number has more digits, or lists are nested more deeply, than Python can read.
        return {}, f"The run's {what} cannot be read: {type(error).__name__}."
    if value is None:
        return {}, None
    if not isinstance(value, dict):
        return {}, f"The run's {what} must be a JSON object."
    return value, None
