"""Tell one run's story in order of time, from the API's table, the ledger and the run's audit log."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.ops.runs.hints import Fleet, hints_for
from orcheo_dispatch.ops.runs.list import only_one
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.ledger.operators.waits import read_waits
from orcheo_dispatch.shared.ledger.story import Event, Who, read_told
from orcheo_dispatch.shared.settings.model import Settings

# A run may be gone from the API's table while its row is still in the ledger.
_IDS = text("""
SELECT id FROM workflow_runs WHERE id = :given
 UNION SELECT run_id FROM orcheo_dispatch.dispatch WHERE run_id = :given
""")
_IDS_THAT_BEGIN = text("""
SELECT id FROM workflow_runs WHERE starts_with(id, :given)
 UNION SELECT run_id FROM orcheo_dispatch.dispatch WHERE starts_with(run_id, :given)
 ORDER BY id LIMIT 4
""")

_FLEET = text("""
SELECT count(*) FILTER (WHERE kind = 'dispatcher') AS dispatchers,
       count(*) FILTER (WHERE kind = 'worker') AS workers,
       COALESCE(sum(concurrency) FILTER (WHERE kind = 'worker'), 0)::int AS places,
       COALESCE(sum(running) FILTER (WHERE kind = 'worker'), 0)::int AS taken,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE state IN ('claimed', 'published')) AS queued,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE workflow_id = :workflow) AS of_workflow,
       (SELECT count(*) FROM orcheo_dispatch.live_runs WHERE workspace_id = :workspace) AS of_workspace
  FROM orcheo_dispatch.processes WHERE alive
""")


@dataclass(frozen=True, slots=True)
class Story:
    """A run's whole story. Ages and `lease_left` are seconds; `status` is None where the API has deleted the run."""

    run_id: str
    workflow_id: str
    workspace_id: str | None
    triggered_by: str
    status: str | None
    created_at: datetime | None
    age: float | None
    state: str | None
    outcome: str | None
    reason: str | None
    fence: int | None
    attempts: int | None
    slot: str | None
    lease_left: float | None
    retries: int
    """How often it was or will be tried again by the retry policy of its workflow."""
    next_attempt_at: datetime | None
    """When it is tried again."""
    interrupts: int | None
    """How many interrupts wait for an answer."""
    held_back: str | None
    """Why it is still pending: `reason` of the view `held_back_runs`."""
    dispatcher: Who | None
    worker: Who | None
    audit_readable: bool
    """Whether the database let us read the run's payload, where its audit log and its error are."""
    error: str | None
    """The run's error, redacted, where it was asked for."""
    events: list[Event]
    hints: list[str]
    """What to know, or to do, where the run is stuck or late."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def read_story(engine: Engine, given: str, settings: Settings, *, errors: bool = False) -> Story:
    """Return the story of the run with the id `given`, or with the only id that begins so.

    The texts of errors and of reasons in the audit log may quote a run's inputs: they are left out unless `errors`.
    Raises `DispatchError` where there is no such run, `SettingsError` where there are several.
    """
    with transaction(engine) as connection:
        run_id = _run_id(connection, given)
        told = read_told(connection, run_id, errors=errors)
        run, worker = told.run, told.worker
        about = {"workflow": run.workflow_id, "workspace": run.workspace_id}
        wait = next(iter(read_waits(connection, [run_id])), None) if run.status == "pending" else None
        fleet = Fleet(**connection.execute(_FLEET, about).one()._mapping)  # noqa: SLF001 - public in SQLAlchemy
    return Story(
        run_id=run.run_id,
        workflow_id=run.workflow_id,
        workspace_id=run.workspace_id,
        triggered_by=run.triggered_by,
        status=run.status,
        created_at=run.created_at,
        age=run.age,
        state=run.state,
        outcome=run.outcome,
        reason=run.reason,
        fence=run.fence,
        attempts=run.attempts,
        slot=run.slot,
        lease_left=run.lease_left,
        retries=run.retries,
        next_attempt_at=run.next_attempt_at,
        interrupts=run.interrupts,
        held_back=wait.reason if wait is not None else None,
        dispatcher=told.dispatcher,
        worker=worker,
        audit_readable=told.audit_readable,
        error=told.error,
        events=told.events,
        hints=hints_for(run, worker.seen_ago if worker is not None else None, fleet, settings, wait),
    )


def _run_id(connection: Connection, given: str) -> str:
    found = connection.execute(_IDS, {"given": given}).scalars().all()
    if not found and given:
        found = connection.execute(_IDS_THAT_BEGIN, {"given": given}).scalars().all()
    if not found:
        raise DispatchError(f"there is no run {given!r}")
    return only_one("run", given, found, "")
