"""Create the runs of due cron triggers, as `dispatch_cron_triggers` of Orcheo's stock worker does.

Orcheo's own classes decide when a trigger is due (time zones, clock changes, missed minutes, windows, overlap) and
create its run (health of credentials, run slots, configuration). The differences from the stock worker are:

- One transaction inserts a run and marks its trigger as dispatched, and only if no process has marked the trigger since
  it was read. The stock worker uses two transactions; a process that dies between them, or dispatches at the same time,
  creates a run twice.
- A trigger that fails (a configuration that this release of Orcheo rejects, a broken version, a locked row) is skipped
  and logged. In the stock worker it stops the triggers of all workspaces.
- All times are Postgres' time, also in the run.
- Nothing is pushed to Celery: the dispatcher is woken after everything is committed.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

from orcheo_dispatch.shared.cron.report import CronReport, SkipReason
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.text.redaction import error_line
from orcheo_dispatch.worker.orcheo.compat import (
    CredentialHealthError,
    CronTriggerConfig,
    CronTriggerState,
    WorkflowNotFoundError,
    WorkflowVersionNotFoundError,
    WorkspaceQuotaExceededError,
    ensure_credential_service,
    get_settings,
    get_vault,
)
from orcheo_dispatch.worker.orcheo.cron_repository import Connection, CronRepository, Due, TakenError, begun, connected

_TURN = 205392149
"""Key of the advisory lock that one dispatch holds at a time."""
_TURN_SECONDS = 300
"""Seconds after which another process may take over from one that hangs; a run is still created only once."""
_MOST_SECONDS = 120.0
"""Maximum duration of a dispatch (seconds); the remaining triggers stay due for the next one."""

_TAKE_TURN = "SELECT pg_try_advisory_xact_lock(%s) AS mine, now() AS now"
"""Its transaction holds no snapshot afterwards, so it does not hold back vacuum."""

# The same rows that Orcheo's `_refresh_cron_triggers` reads.
_TRIGGERS = """
WITH live_runs AS MATERIALIZED (
  SELECT DISTINCT workflow_id FROM workflow_runs WHERE triggered_by = 'cron' AND status IN ('pending', 'running'))
SELECT c.workflow_id, c.config, c.last_dispatched_at, l.workflow_id IS NOT NULL AS is_live
  FROM cron_triggers AS c
  JOIN workflows AS w ON w.id = c.workflow_id
  LEFT JOIN live_runs AS l ON l.workflow_id = c.workflow_id
 WHERE NOT w.is_archived
 ORDER BY c.last_dispatched_at NULLS FIRST, c.workflow_id
"""


@dataclass(slots=True)
class _Trigger:
    """What this process remembers of a trigger; one that was never dispatched is due from when it was first seen."""

    config: Any
    state: CronTriggerState


class OrcheoCron:
    """Dispatches due cron triggers of all workspaces. Use it only from one thread and one event loop."""

    def __init__(self) -> None:
        self._triggers: dict[str, _Trigger] = {}
        self._said: dict[str, str] = {}
        self._repository: CronRepository | None = None

    async def dispatch(self, *, now: datetime | None = None) -> CronReport:
        """Create the run of each trigger that is due, unless another process is dispatching.

        `now` defaults to Postgres' time. Raises `DatabaseError` if Postgres is unavailable.
        """
        repository = self._open()
        try:
            async with (
                connected(repository.dsn) as turn,
                begun(turn, idle_in_transaction_session_timeout=_TURN_SECONDS * 1000),
            ):
                row = await (await turn.execute(_TAKE_TURN, (_TURN,))).fetchone()
                if row is None or not row["mine"]:
                    return CronReport("busy")
                async with connected(repository.dsn) as connection:
                    repository.connection = connection
                    return await self._dispatch(repository, connection, now or row["now"])
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatabaseError(error_line(error)) from error
        except psycopg.errors.UndefinedTable as error:
            raise DatabaseError(f"{error_line(error)}: start Orcheo's API once on this database") from error

    def _open(self) -> CronRepository:
        if self._repository is None:
            settings = get_settings()
            service = ensure_credential_service(settings, get_vault())
            self._repository = CronRepository(str(settings.postgres_dsn), credential_service=service)
        return self._repository

    async def _dispatch(self, repository: CronRepository, connection: Connection, now: datetime) -> CronReport:
        async with begun(connection):
            rows = await (await connection.execute(_TRIGGERS)).fetchall()
        skipped: Counter[str] = Counter()
        due = [each for row in rows if (each := self._look(row, now, skipped)) is not None]
        self._forget(row["workflow_id"] for row in rows)
        runs = 0
        deadline = time.monotonic() + _MOST_SECONDS
        for each in due:
            if time.monotonic() > deadline:
                break
            runs += await self._create(repository, each, skipped)
        return CronReport("succeeded", runs, dict(skipped))

    def _look(self, row: DictRow, now: datetime, skipped: Counter[str]) -> Due | None:
        """Return the trigger of a row if it is due, by the rules of Orcheo's trigger layer."""
        workflow_id, read = row["workflow_id"], row["last_dispatched_at"]
        try:
            state = self._state(row)
            scheduled_for = state.peek_due(now=now)
            if scheduled_for is None or (row["is_live"] and not state.config.allow_overlapping):
                return None
        except Exception as error:  # noqa: BLE001 - a configuration that Orcheo refuses is this trigger's alone
            self._skip(workflow_id, "failed", skipped, error)
            return None
        return Due(workflow_id, state, scheduled_for, read)

    def _state(self, row: DictRow) -> CronTriggerState:
        known = self._triggers.get(row["workflow_id"])
        last = row["last_dispatched_at"]
        if known is None:
            state = CronTriggerState(CronTriggerConfig.model_validate(row["config"]), last_dispatched_at=last)
            self._triggers[row["workflow_id"]] = _Trigger(row["config"], state)
            return state
        if known.config != row["config"] or known.state.last_dispatched_at != last:
            config = CronTriggerConfig.model_validate(row["config"])
            known.state.update_config(config, last_dispatched_at=last)
            known.config = row["config"]
        return known.state

    async def _create(self, repository: CronRepository, due: Due, skipped: Counter[str]) -> int:
        """Create the run of one trigger; return 1, or 0 if it was skipped."""
        try:
            workflow = await repository.get_workflow(UUID(due.workflow_id))
            version = await repository.get_latest_version(workflow.id)
            with repository.marking(due):
                await repository.create_run(
                    workflow.id,
                    workflow_version_id=version.id,
                    triggered_by="cron",
                    input_payload={
                        "scheduled_for": due.scheduled_for.isoformat(),
                        "timezone": due.state.config.timezone,
                    },
                    actor="cron",
                    workspace_id=await repository.get_workflow_workspace_id(workflow.id),
                )
        except (WorkflowNotFoundError, WorkflowVersionNotFoundError, TakenError):
            # Archived, without a version, or dispatched by another process.
            return 0
        except CredentialHealthError as error:
            self._skip(due.workflow_id, "credentials", skipped, error)
            return 0
        except WorkspaceQuotaExceededError as error:
            self._skip(due.workflow_id, "quota", skipped, error)
            return 0
        except psycopg.errors.LockNotAvailable as error:
            self._skip(due.workflow_id, "locked", skipped, error)
            return 0
        except Exception as error:
            if repository.connection is None or repository.connection.closed:
                raise
            # An error of one trigger must not stop the others.
            self._skip(due.workflow_id, "failed", skipped, error)
            return 0
        due.state.consume_due()
        self._said.pop(due.workflow_id, None)
        return 1

    def _skip(self, workflow_id: str, reason: SkipReason, skipped: Counter[str], error: BaseException) -> None:
        """Count a due trigger without a run, and log it once while the reason stays the same."""
        skipped[reason] += 1
        if self._said.get(workflow_id) != reason:
            self._said[workflow_id] = reason
            log.warning("cron_trigger_skipped", workflow_id=workflow_id, reason=reason, **describe(error))

    def _forget(self, workflow_ids: Any) -> None:
        """Forget triggers that were deleted, or whose workflow is archived."""
        for gone in self._triggers.keys() - set(workflow_ids):
            del self._triggers[gone]
            self._said.pop(gone, None)
