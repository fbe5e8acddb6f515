"""Why pending runs wait: the one place that says so, for commands and for the status page.

The view `held_back_runs` decides; here its answer becomes a sentence.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from orcheo_dispatch.shared.ledger.statements.policy import HELD_BACK

# Whether `migrate` of this release has created the views, and this role may read them.
_MAY_SEE = text("""
SELECT COALESCE(has_table_privilege(to_regclass('orcheo_dispatch.held_back_runs'), 'SELECT')
                AND has_table_privilege(to_regclass('orcheo_dispatch.policies'), 'SELECT'), false)
""")


@dataclass(frozen=True, slots=True)
class Wait:
    """A pending run, and why it waits. `age` is in seconds."""

    run_id: str
    workflow_id: str
    workspace_id: str | None
    triggered_by: str
    created_at: datetime
    age: float
    claim: str | None
    queue: str
    reason: str
    scope: str | None
    until: datetime | None
    used: int | None
    allowed: int | None
    by: str | None
    """Who decided the policy that holds it back; None if none does."""
    why: str | None
    """What they gave as the reason."""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)

    @property
    def held_back(self) -> bool:
        """Whether something other than its turn holds the run back."""
        return self.reason not in ("in_turn", "queued")

    @property
    def sentence(self) -> str:
        """Why it waits, who decided that, and the command that changes it."""
        match self.reason:
            case "maintenance":
                return f"maintenance is on{self._by()}, so no run is claimed: 'orcheo-dispatch maintenance off' ends it"
            case "paused":
                until = f" until {_time(self.until)}" if self.until else ""
                return f"{self._of()} paused{until}{self._by()}: 'orcheo-dispatch unpause {self._option()}' ends it"
            case "no_worker" if self.queue == "default":
                return "no live worker consumes the default queue: 'orcheo-dispatch worker' starts one"
            case "no_worker":
                return (
                    f"no live worker consumes queue {self.queue}, which a policy names{self._by()}: "
                    f"start one with {self.queue} in ORCHEO_WORKER_QUEUES; {self._explain()}"
                )
            case "limit_reached":
                limit = f"limit reached: {self.used} of at most {self.allowed} runs of {self._whose()} are in progress"
                return f"{limit}{self._by()}; {self._explain()}"
            case "rate_used_up":
                next_at = f"; the next is possible at {_time(self.until)}" if self.until else ""
                rate = f"rate used up: {self.used} of at most {self.allowed} claims of {self._whose()}"
                return f"{rate}{self._by()}{next_at}; {self._explain()}"
            case "queued":
                return f"{self.claim}, and waits for a worker"
        return "nothing holds it back: it waits for its turn"

    def _of(self) -> str:
        return {"workflow": "its workflow is", "workspace": "its workspace is"}.get(self.scope or "", "all runs are")

    def _whose(self) -> str:
        return {"workflow": "its workflow", "workspace": "its workspace"}.get(self.scope or "", "all workflows")

    def _by(self) -> str:
        return f", by {self.by}{f' ({self.why})' if self.why else ''}" if self.by else ""

    def _option(self) -> str:
        if self.scope == "workflow":
            return f"--workflow {shlex.quote(self.workflow_id)}"
        return f"--workspace {shlex.quote(self.workspace_id or '')}" if self.scope == "workspace" else "--all"

    def _explain(self) -> str:
        return f"see 'orcheo-dispatch policy explain {shlex.quote(self.workflow_id)}'"


def may_see_waits(connection: Connection) -> bool:
    """Return whether this role may read why runs wait."""
    return bool(connection.scalar(_MAY_SEE))


def read_waits(connection: Connection, run_ids: Sequence[str] = (), *, limit: int = 1000) -> list[Wait]:
    """Return why these runs wait, or why the oldest pending runs do; oldest first.

    Runs that are not pending, or that no dispatcher claims, are left out. Returns nothing if a view is missing, or
    if this role may not read it.
    """
    if not may_see_waits(connection):
        return []
    rows = connection.execute(HELD_BACK, {"run_ids": list(run_ids), "limit": limit}).mappings()
    return [Wait(**row) for row in rows]


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
