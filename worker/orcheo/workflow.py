"""The workflow that a run executes, read in one statement."""

from __future__ import annotations

from uuid import UUID

from orcheo.models import WorkflowVersion
from orcheo_backend.app.repository import WorkflowVersionNotFoundError

from worker.executor import Run, RunRejectedError
from worker.orcheo.postgres import Pool, fetch_one

# Orcheo's own get_version would do, but its first call in a process reads every pending, running and
# failed run of the table into memory. A row comes back even where both joins find nothing.
_SELECT_VERSION = """
SELECT v.payload, w.id AS workflow_id, w.is_archived, w.workspace_id
  FROM (VALUES (%(workflow_id)s::text, %(version_id)s::text)) AS run (workflow_id, version_id)
  LEFT JOIN workflows w ON w.id = run.workflow_id
  LEFT JOIN workflow_versions v ON v.id = run.version_id
"""


async def load_version(pool: Pool, run: Run) -> WorkflowVersion:
    """Return the version that `run` executes.

    Raises `RunRejectedError` where its workflow is archived, gone or of another workspace, and
    Orcheo's `WorkflowVersionNotFoundError` where only the version is gone.
    """
    parameters = {"workflow_id": run.workflow_id, "version_id": run.workflow_version_id}
    row = await fetch_one(pool, _SELECT_VERSION, parameters)
    if row is None or row["workflow_id"] is None or _is_foreign(row["workspace_id"], run.workspace_id):
        raise RunRejectedError("Workflow is archived or unavailable.")
    if row["is_archived"]:
        raise RunRejectedError("Workflow is archived.")
    if row["payload"] is None:
        raise WorkflowVersionNotFoundError(str(UUID(run.workflow_version_id)))
    return WorkflowVersion.model_validate(row["payload"])


def _is_foreign(owner: str | None, workspace_id: str | None) -> bool:
    """Tell whether the workflow belongs to another workspace; one without an owner belongs to all, as in Orcheo."""
    return owner is not None and workspace_id is not None and owner != workspace_id
