"""Find runs by status, workflow, trigger, outcome and age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.ops.runs.moments import ANY_TIME, Moment
from orcheo_dispatch.ops.runs.words import OUTCOMES, STATUSES
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.errors import SettingsError

_SHOWN = 3

# A list that is empty, or a time that is null, is no filter.
_FOUND = text("""
SELECT r.id AS run_id, r.workflow_id, r.status, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.created_at)::float8 AS age,
       d.state, d.outcome, d.fence, d.attempts, d.reason, d.worker_id::text AS worker_id,
       EXTRACT(epoch FROM d.begun_at - r.created_at)::float8 AS waited,
       EXTRACT(epoch FROM COALESCE(d.settled_at, CASE WHEN d.state = 'running' THEN now() END) - d.begun_at)::float8
           AS ran,
       COALESCE(t.retries, 0) AS retries, CASE WHEN r.status = 'failed' THEN t.next_at END AS next_attempt_at,
       CASE WHEN r.status = 'running' THEN q.interrupts END AS interrupts
  FROM workflow_runs AS r
  LEFT JOIN orcheo_dispatch.dispatch AS d ON d.run_id = r.id
  LEFT JOIN orcheo_dispatch.retry AS t ON t.run_id = r.id
  LEFT JOIN orcheo_dispatch.question AS q ON q.run_id = r.id
 WHERE (CAST(:statuses AS text[]) = '{}' OR r.status = ANY (CAST(:statuses AS text[])))
   AND (CAST(:triggers AS text[]) = '{}' OR r.triggered_by = ANY (CAST(:triggers AS text[])))
   AND (CAST(:outcomes AS text[]) = '{}' OR d.outcome = ANY (CAST(:outcomes AS text[])))
   AND (CAST(:workflow AS text) IS NULL OR r.workflow_id = :workflow)
   AND r.created_at >= COALESCE(CAST(:since AS timestamptz), now() - make_interval(secs => :since_ago), '-infinity')
   AND r.created_at <= COALESCE(CAST(:until AS timestamptz), now() - make_interval(secs => :until_ago), 'infinity')
   AND (NOT :stuck OR r.id IN (SELECT l.run_id FROM orcheo_dispatch.live_runs AS l WHERE l.stuck))
   AND (NOT :dead OR r.id IN (SELECT x.run_id FROM orcheo_dispatch.dead_runs AS x))
   AND (NOT :retrying OR r.id IN (SELECT x.run_id FROM orcheo_dispatch.retrying_runs AS x))
   AND (NOT :waiting OR r.id IN (SELECT x.run_id FROM orcheo_dispatch.waiting_runs AS x))
   AND (NOT :lost OR d.outcome = 'lost' OR (d.outcome = 'requeued' AND d.reason = 'worker_lost'))
 ORDER BY r.created_at DESC, r.id
 LIMIT :limit
""")

WORKFLOW_WITH_RUNS = text("SELECT EXISTS (SELECT FROM workflow_runs WHERE workflow_id = :given)")
WORKFLOWS_WITH_RUNS = text("""
SELECT DISTINCT workflow_id AS id FROM workflow_runs WHERE starts_with(workflow_id, :given) ORDER BY id LIMIT 4
""")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs to list. What is empty or None filters nothing."""

    statuses: Sequence[str] = ()
    triggers: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    workflow: str | None = None
    """The id of a workflow, or the beginning of one that no other workflow with runs has."""
    since: Moment = ANY_TIME
    until: Moment = ANY_TIME
    stuck: bool = False
    """Only those that run although their lease has expired."""
    lost: bool = False
    """Only those whose worker was lost when they last ran."""
    dead: bool = False
    """Only those that have failed and are not tried again."""
    retrying: bool = False
    """Only those that have failed and are tried again."""
    waiting: bool = False
    """Only those that wait for an answer."""
    limit: int = 20


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run and its place in the ledger. `age`, `waited` and `ran` are seconds."""

    run_id: str
    workflow_id: str
    status: str
    triggered_by: str
    created_at: datetime
    age: float
    state: str | None
    outcome: str | None
    fence: int | None
    attempts: int | None
    reason: str | None
    worker_id: str | None
    waited: float | None
    ran: float | None
    retries: int
    """How often it was or will be tried again by the retry policy of its workflow."""
    next_attempt_at: datetime | None
    """When it is tried again."""
    interrupts: int | None
    """How many interrupts wait for an answer."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def find_runs(engine: Engine, wanted: Wanted) -> list[RunRow]:
    """Return the newest of the wanted runs first.

    Raises `SettingsError` for a status or outcome that does not exist, or a workflow that is none or several.
    """
    _check("--status", wanted.statuses, STATUSES)
    _check("--outcome", wanted.outcomes, OUTCOMES)
    with transaction(engine) as connection:
        workflow = _workflow(connection, wanted.workflow) if wanted.workflow is not None else None
        rows = connection.execute(
            _FOUND,
            {
                "statuses": list(wanted.statuses),
                "triggers": list(wanted.triggers),
                "outcomes": list(wanted.outcomes),
                "workflow": workflow,
                "since": wanted.since.at,
                "since_ago": wanted.since.seconds_ago,
                "until": wanted.until.at,
                "until_ago": wanted.until.seconds_ago,
                "stuck": wanted.stuck,
                "lost": wanted.lost,
                "dead": wanted.dead,
                "retrying": wanted.retrying,
                "waiting": wanted.waiting,
                "limit": wanted.limit,
            },
        )
        return [RunRow(**row) for row in rows.mappings()]


def only_one(option: str, given: str, found: Sequence[str], nothing: str) -> str:
    """Return the one that begins with `given`. Raises `SettingsError` where that is none (say `nothing`) or several."""
    if not found:
        raise SettingsError(f"{option}={given!r} is invalid: {nothing}")
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN]) + (" and more" if len(found) > _SHOWN else "")
        raise SettingsError(f"{option}={given!r} is invalid: the beginning of several: {shown}")
    return found[0]


def _workflow(connection: Connection, given: str) -> str:
    if connection.scalar(WORKFLOW_WITH_RUNS, {"given": given}):
        return given
    found = [row.id for row in connection.execute(WORKFLOWS_WITH_RUNS, {"given": given})]
    return only_one("--workflow", given, found, "no workflow with runs has an id that begins so")


def _check(option: str, given: Sequence[str], takes: Sequence[str]) -> None:
    for each in given:
        if each not in takes:
            raise SettingsError.wrong(option, each, "one of " + ", ".join(takes))
