"""Cancel, fail or requeue a run for an operator; refuses what would break a rule of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine

from orcheo_dispatch.shared.database.connections import in_transaction
from orcheo_dispatch.shared.ledger.statements.repair import REPAIR
from orcheo_dispatch.shared.ledger.store import Store
from orcheo_dispatch.shared.text.redaction import redact

ACTOR_OPERATOR = "operator"


class Action(StrEnum):
    """What to do to a run."""

    CANCEL = "cancel"
    """End it as cancelled; a worker that executes it stops within two heartbeats."""
    FAIL = "fail"
    """End it as failed, where no worker is alive that could."""
    REQUEUE = "requeue"
    """Make it pending again, with all its attempts; its fence keeps earlier holders out."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done to one run; with `refused`, nothing was, and this is why."""

    run_id: str
    status_before: str | None
    status_after: str | None
    refused: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def repair(
    engine: Engine,
    run_ids: Sequence[str],
    action: Action,
    *,
    reason: str,
    dry_run: bool = False,
    from_start: bool = False,
) -> list[Repair]:
    """Apply `action` to each run, in one transaction per run; with `dry_run` only report what would be done.

    With `from_start` a requeued run does not continue after its last stored step. `reason` goes into the run's error
    and audit log. Run slots that become due are given back by the dispatcher.
    Raises `DatabaseError`; what was done until then stays done.
    """
    text = redact(reason.encode("utf-8", "replace").decode())
    done = [_repair_one(engine, run_id, action, text, dry_run, from_start) for run_id in dict.fromkeys(run_ids)]
    if action is Action.FAIL and not dry_run:
        Store(engine).close_traces(each.run_id for each in done if not each.refused)
    return done


def _repair_one(engine: Engine, run_id: str, action: Action, reason: str, dry_run: bool, from_start: bool) -> Repair:
    parameters = {
        "run_id": run_id,
        "action": action.value,
        "actor": ACTOR_OPERATOR,
        "reason": reason,
        "dry_run": dry_run,
        "from_start": from_start,
    }
    row = in_transaction(engine, lambda connection: connection.execute(REPAIR, parameters).one_or_none())
    if row is None:
        return Repair(run_id, None, None, "there is no such run")
    if row.refused:
        return Repair(run_id, row.status_before, row.status_before, row.refused)
    return Repair(run_id, row.status_before, row.status_after, None)
