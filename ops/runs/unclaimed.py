"""Pending runs that no dispatcher will claim: why, and what to change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, text

from orcheo_dispatch.shared.database.connections import transaction

# The view has the one definition of these runs.
_UNCLAIMED = text("""
SELECT u.run_id, u.workflow_id, u.workspace_id, u.triggered_by, u.created_at, u.age_seconds AS age, u.reason
  FROM orcheo_dispatch.unclaimed_runs AS u ORDER BY u.created_at DESC, u.run_id LIMIT :limit
""")
_MEND = {
    "not_in_allow_list": "add its label to ORCHEO_DISPATCH_TRIGGERS of the dispatchers, or cancel it",
    "chatkit": "only the API executes ChatKit's runs, and it did not begin this one: cancel it",
}


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A run that stays pending, and holds a run slot of its workspace. `age` is in seconds."""

    run_id: str
    workflow_id: str
    workspace_id: str | None
    triggered_by: str
    created_at: datetime
    age: float
    reason: str
    mend: str
    """What to change."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def find_unclaimed(engine: Engine, limit: int) -> list[Unclaimed]:
    """Return the newest of them first."""
    with transaction(engine) as connection:
        rows = connection.execute(_UNCLAIMED, {"limit": limit}).mappings()
        return [Unclaimed(**row, mend=_MEND[row["reason"]]) for row in rows]
