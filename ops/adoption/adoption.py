"""Take over from Orcheo's own worker: find what it left behind, show it, and repair it on request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

from orcheo_dispatch.ops.adoption.env_advice import Advice, Verdict
from orcheo_dispatch.ops.adoption.leaked_slots import LeakedSlots, SlotAudit
from orcheo_dispatch.ops.adoption.leftovers import LeftRun, left_pending, left_running
from orcheo_dispatch.ops.adoption.stock_worker import ask_workers, pushed_runs
from orcheo_dispatch.ops.runs.author import author
from orcheo_dispatch.ops.runs.moments import duration
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.errors import SchemaError
from orcheo_dispatch.shared.ledger.operators.repairs import Repair, repair
from orcheo_dispatch.shared.ledger.operators.selection import Action
from orcheo_dispatch.shared.schema.revision import current_revision, newest_revision
from orcheo_dispatch.shared.settings.model import Settings

_FAILED = "Left running by a worker that is gone."
_REQUEUED = "Left running by a worker that is gone; executed again."
_CANCELLED = "Left pending; cancelled when orcheo-dispatch took over."


@dataclass(frozen=True, slots=True)
class Plan:
    """What counts as left behind, and what becomes of it."""

    older_than: float
    running: str
    """fail or requeue"""
    pending: str
    """run or cancel"""


@dataclass(frozen=True, slots=True)
class Found:
    """What was left behind, and which of Orcheo's workers are still alive."""

    workers: list[str]
    held: list[str]
    """The runs that they say they hold."""
    running: list[LeftRun]
    pending: list[LeftRun]
    pushed: int
    """Pending runs whose push is still in Redis."""
    slots: list[LeakedSlots]

    def to_repair(self, plan: Plan) -> bool:
        """Tell whether there is something that a repair would change."""
        return bool(self.running or self.slots or (self.pending and plan.pending == "cancel"))

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return {
            "workers": self.workers,
            "held": self.held,
            "running": [run.as_json() for run in self.running],
            "pending": [run.as_json() for run in self.pending],
            "pushed": self.pushed,
            "slots": [each.as_json() for each in self.slots],
        }


@dataclass(frozen=True, slots=True)
class Done:
    """What a repair has changed: runs, and slots given back by workspace."""

    runs: list[Repair]
    slots: dict[str, int]

    @property
    def refused(self) -> int:
        """Number of runs that had changed in the meantime, or are being executed."""
        return sum(bool(each.refused) for each in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return {"runs": [each.as_json() for each in self.runs], "slots": self.slots}


class Adoption:
    """The connections that a look and a repair need."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self._settings = settings
        self._plan = plan
        self._engine = make_engine(settings, role="adopt", connections=1)
        self._slots = connect(settings.slots_redis_url.get_secret_value())
        self._broker = connect(settings.redis_url.get_secret_value())
        self._audit = SlotAudit(self._engine, self._slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.close()
        self._broker.close()
        self._engine.dispose()

    def look(self) -> Found:
        """Return what was left behind. Raises `DatabaseError` and `BrokerError`: without an answer nothing is."""
        with transaction(self._engine) as connection:
            if current_revision(connection) != newest_revision():
                raise SchemaError("what was left behind is not known yet: run 'orcheo-dispatch migrate', and repeat")
        workers = ask_workers(self._settings)
        pending = left_pending(
            self._engine,
            older_than=self._plan.older_than,
            triggers=self._settings.triggers,
            every_trigger=self._settings.takes_every_trigger,
        )
        pending = [run for run in pending if run.run_id not in workers.held]
        pushed = pushed_runs(self._broker)
        return Found(
            list(workers.names),
            sorted(workers.held),
            left_running(self._engine, older_than=self._plan.older_than, held=workers.held),
            pending,
            sum(run.run_id in pushed for run in pending),
            self._audit.leaked(workers.held),
        )

    def repair(self, found: Found) -> Done:
        """Repair what was found, unless it has changed since.

        The slots of the runs that are ended here are given back by the dispatcher, as those of all other runs.
        """
        # Checked again: the operator may have waited for an hour before answering.
        held = ask_workers(self._settings).held
        still = {run.run_id for run in left_running(self._engine, older_than=self._plan.older_than, held=held)}
        running = [run.run_id for run in found.running if run.run_id in still]
        action, reason = (Action.FAIL, _FAILED) if self._plan.running == "fail" else (Action.REQUEUE, _REQUEUED)
        done = repair(self._engine, running, action, author(reason))
        done += [
            Repair(run.run_id, None, None, "it has changed in the meantime")
            for run in found.running
            if run.run_id not in still
        ]
        if self._plan.pending == "cancel":
            done += repair(self._engine, [run.run_id for run in found.pending], Action.CANCEL, author(_CANCELLED))
        slots = {each.workspace_id: self._audit.give_back(each) for each in found.slots}
        return Done(done, slots)


def advice_text(advice: list[Advice]) -> str:
    """Return a paragraph for each variable."""
    if not advice:
        return "settings: nothing to change"
    marks = {Verdict.NOTE: "  "}
    return "\n".join(
        f"{marks.get(each.verdict, '! ')}{each.variable}: {each.verdict}\n"
        f"      is      {each.found}\n      should  {each.wanted}\n      why     {each.why}"
        for each in advice
    )


def found_text(found: Found, plan: Plan) -> str:
    """Return what was left behind, and what a repair does about it."""
    lines = [f"\nOrcheo's own workers that answer: {', '.join(found.workers) or 'none'}"]
    if found.workers:
        lines.append(f"  runs that they hold, left alone: {len(found.held)}; stop them before dispatchers start")
    lines.append(f"runs left running, unchanged for {duration(plan.older_than)}: {len(found.running)}")
    becomes = "failed" if plan.running == "fail" else "pending again"
    lines += [
        f"  {run.run_id}  {run.triggered_by!r}, silent for {duration(run.silent)}: would be {becomes}"
        for run in found.running
    ]
    becomes = "claimed by the first dispatcher" if plan.pending == "run" else "cancelled"
    lines.append(
        f"pending runs older than {duration(plan.older_than)}: {len(found.pending)}, "
        f"of which the push is in Redis: {found.pushed}"
    )
    for trigger, count in Counter(run.triggered_by for run in found.pending).most_common():
        oldest = max(run.silent for run in found.pending if run.triggered_by == trigger)
        lines.append(f"  {count} of {trigger!r}, the oldest {duration(oldest)} old: would be {becomes}")
    lines.append(f"workspaces with run slots that no run holds: {len(found.slots)}")
    lines += [
        f"  {each.workspace_id}  counted {each.counted}, runs {each.holders}: {each.leaked} would be given back"
        for each in found.slots
    ]
    return "\n".join(lines)


def done_text(done: Done) -> str:
    """Return what a repair has changed, a line for each run and workspace."""
    lines = [
        f"{each.run_id}  "
        + (f"left alone: {each.refused}" if each.refused else f"{each.status_before} -> {each.status_after}")
        for each in done.runs
    ]
    lines += [f"{workspace}  slots given back: {count}" for workspace, count in done.slots.items()]
    return "\n".join(lines)
