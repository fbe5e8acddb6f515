"""Find what Orcheo's own worker left behind: running runs without a worker, and old pending runs.

A live process is recognised by its answers and by its writes. Orcheo's workers are asked over Redis which runs they
execute. A run of a worker that does not answer, such as one of a busy solo pool, or of the API itself, counts as left
only when neither the run nor its trace has changed for a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from orcheo_dispatch.shared.database.connections import transaction

# Our own runs have a live row in the ledger: a lost worker of ours is the reaper's affair.
_RUNNING = text("""
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.updated_at)::float8 AS silent
  FROM workflow_runs AS r
 WHERE r.status = 'running' AND r.updated_at < now() - make_interval(secs => :older_than)
   AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d
                    WHERE d.run_id = r.id AND d.state IN ('claimed', 'published', 'running'))
 ORDER BY r.created_at, r.id
""")

# By the settings of this command: before the first dispatcher runs, the views know only the default allow-list.
_PENDING = text("""
SELECT r.id AS run_id, r.workflow_id, r.workspace_id, r.triggered_by, r.created_at,
       EXTRACT(epoch FROM now() - r.updated_at)::float8 AS silent
  FROM workflow_runs AS r
 WHERE r.status = 'pending' AND r.updated_at < now() - make_interval(secs => :older_than)
   AND (:every_trigger OR r.triggered_by = ANY (CAST(:triggers AS text[])))
   AND NOT orcheo_dispatch.of_chatkit(r.triggered_by, r.payload)
   AND NOT EXISTS (SELECT FROM orcheo_dispatch.dispatch AS d
                    WHERE d.run_id = r.id AND d.state IN ('claimed', 'published', 'running'))
 ORDER BY r.created_at, r.id
""")

_HAS_TRACES = text("SELECT to_regclass('execution_history_steps') IS NOT NULL")
_LAST_STEPS = text("""
SELECT s.execution_id AS run_id, EXTRACT(epoch FROM now() - max(s.at))::float8 AS silent
  FROM execution_history_steps AS s
 WHERE s.execution_id = ANY (CAST(:run_ids AS text[]))
 GROUP BY s.execution_id
""")


@dataclass(frozen=True, slots=True)
class LeftRun:
    """A run that no live process is known to hold. `silent`: seconds since it, or its trace, last changed."""

    run_id: str
    workflow_id: str
    workspace_id: str | None
    triggered_by: str
    created_at: datetime
    silent: float

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def left_running(engine: Engine, *, older_than: float, held: frozenset[str]) -> list[LeftRun]:
    """Return runs that are running, that no live process is known to hold, silent for `older_than` seconds.

    `held` are the runs that a live worker of Orcheo reports as its own. Raises `DatabaseError`.
    """
    with transaction(engine) as connection:
        found = [LeftRun(**row) for row in connection.execute(_RUNNING, {"older_than": older_than}).mappings()]
        steps = _last_steps(connection, [run.run_id for run in found])
    return [run for run in found if run.run_id not in held and steps.get(run.run_id, run.silent) >= older_than]


def left_pending(engine: Engine, *, older_than: float, triggers: Sequence[str], every_trigger: bool) -> list[LeftRun]:
    """Return pending runs that the dispatchers claim as soon as they run, `older_than` seconds old at least."""
    parameters = {"older_than": older_than, "triggers": list(triggers), "every_trigger": every_trigger}
    with transaction(engine) as connection:
        return [LeftRun(**row) for row in connection.execute(_PENDING, parameters).mappings()]


def _last_steps(connection: Connection, run_ids: list[str]) -> dict[str, float]:
    if not run_ids or not connection.scalar(_HAS_TRACES):
        return {}
    return {row.run_id: row.silent for row in connection.execute(_LAST_STEPS, {"run_ids": run_ids})}
