"""Judges what a trial has left behind: each finding is a promise that was not kept.

Side effects may come a little after a settle in three cases, which are no findings. A holder that was cut off or
paused learns of its lost fence at a heartbeat: two of them are its bound, after its lease or its wake-up. A run that
ignores its cancellation, or blocks the loop, cannot be stopped; it is settled, and its code goes on. And while a run
blocks the loop, its neighbours cannot be stopped either: each may still come to its next `await`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from orcheo.models import WorkflowRun
from pydantic import ValidationError

from tests.faults.acts import BEGUN, ENDED
from tests.faults.evidence import SIDE_EFFECTS, Evidence, Note, actions
from tests.faults.history import TERMINAL
from tests.faults.plan import Act, Kind, RunPlan
from tests.histories import search
from tests.model.conformance import unknown_changes
from tests.support.orcheo.stored_steps import finished_steps_repeated

CLOCK_SECONDS = 0.3
"""For what a busy machine does between a look at the clock and a line in the file."""


class Column(StrEnum):
    """What must be zero."""

    LOST = "lost"
    STUCK = "stuck"
    TWICE = "begun twice under one fence"
    LATE = "side effects after a settle"
    SLOTS = "slots leaked"
    UNREADABLE = "payloads that Orcheo cannot read"
    OVERWRITTEN = "cancels overwritten"
    UNEXPLAINED = "ends that nothing explains"
    LEAKED = "inputs and secrets in logs"
    CRASHED = "crashes and hung stops"
    REPEATED = "finished steps repeated"
    UNKNOWN = "changes that the model does not have"
    ILLEGAL = "illegal histories"
    FORGOTTEN = "executions that the ledger does not know"


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise that was not kept, and the evidence in words."""

    column: Column
    what: str


def check(evidence: Evidence) -> list[Finding]:
    """Return all findings."""
    return [Finding(column, what) for column, look in _LOOKS.items() for what in look(evidence)]


def counts(findings: list[Finding]) -> dict[Column, int]:
    """Return the number of findings by column, zeros included."""
    found = Counter(finding.column for finding in findings)
    return {column: found[column] for column in Column}


def _lost(evidence: Evidence) -> Iterator[str]:
    """Yield the runs that nobody will ever end: gone from the table, or pending and held by nobody."""
    for run in evidence.plan.runs:
        row = evidence.runs.get(run.run_id)
        if row is None:
            yield f"{run.run_id} is gone"
        elif row["status"] == "pending" and not _held(evidence, run.run_id):
            yield f"{run.run_id} is pending: {actions(row)}"


def _stuck(evidence: Evidence) -> Iterator[str]:
    """Yield the runs that somebody holds and does not end, and rows that are held for no run."""
    for run_id, row in evidence.runs.items():
        if row["status"] == "running" or (row["status"] not in TERMINAL and _held(evidence, run_id)):
            yield f"{run_id} is {row['status']}, ledger {_ledger(evidence, run_id)}"
        elif _held(evidence, run_id):
            yield f"{run_id} has ended, ledger {_ledger(evidence, run_id)}"


def _twice(evidence: Evidence) -> Iterator[str]:
    notes = Counter((note.run_id, note.fence) for note in evidence.notes if note.event == BEGUN)
    for (run_id, fence), count in notes.items():
        allowed = 1 if fence else actions(evidence.runs[run_id]).count("run_started")
        if count > allowed:
            yield f"{run_id} under fence {fence} noted {count} begins"
    begins = Counter((m.run_id, m.fence) for m in evidence.history.moves if m.sign == "running")
    yield from (
        f"{run_id} under fence {fence} moved to running {n} times" for (run_id, fence), n in begins.items() if n > 1
    )
    for run_id in evidence.history.moves_of:
        began = len(evidence.history.begins(run_id))
        if evidence.lost_runs == "fail" and began > 1:
            yield f"{run_id} began {began} times under the policy to fail"
        attempts = evidence.ledger[run_id]["attempts"] + evidence.subtracted.get(run_id, 0)
        if began != attempts:
            yield f"{run_id} began {began} times, its ledger says {attempts}"


def _late(evidence: Evidence) -> Iterator[str]:
    acts = {run.run_id: run.act for run in evidence.plan.runs}
    bound = 2 * evidence.plan.pace.heartbeat + CLOCK_SECONDS
    silences = _silences(evidence)
    for note in evidence.notes:
        if note.event not in SIDE_EFFECTS or acts[note.run_id] in {Act.SWALLOW, Act.BLOCK}:
            continue
        settled = _settled_at(evidence, note)
        if settled is None:
            continue
        silent = (*silences[note.pid], *silences[note.worker])
        if note.at > max((end for began, end in silent if began <= settled <= end), default=settled) + bound:
            yield f"{note.run_id} under fence {note.fence}: {note.event} {note.at - settled:.2f} s after its settle"


def _settled_at(evidence: Evidence, note: Note) -> float | None:
    if note.fence:
        return evidence.history.settled_at(note.run_id, note.fence)
    return evidence.history.ended_at(note.run_id)


def _silences(evidence: Evidence) -> dict[int, list[tuple[float, float]]]:
    """Return by process from when to when its runs could obey nobody: it was paused, or a run blocked its loop.

    The runners of a worker continue while its main process is paused: they are in process groups of their own.
    """
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for fault in evidence.injected:
        if fault.kind is Kind.PAUSE_WORKER and fault.pid is not None:
            found[fault.pid].append((fault.began_at, fault.ended_at))
    for run in (run for run in evidence.plan.runs if run.act is Act.BLOCK):
        began: dict[tuple[int, int], float] = {}
        for note in evidence.notes_of[run.run_id]:
            if note.event == BEGUN:
                began[note.pid, note.fence] = note.at
            elif (note.pid, note.fence) in began:
                found[note.pid].append((began[note.pid, note.fence], note.at))
    return found


def _slots(evidence: Evidence) -> Iterator[str]:
    """Yield the slots that the ledger still owes, and those that the counter is off by beyond them."""
    owed = [row for row in evidence.ledger.values() if row["slot"] not in {"returned", "none"}]
    yield from (
        f"the slot of {row['run_id']} is {row['slot']}, ledger {_ledger(evidence, row['run_id'])}" for row in owed
    )
    for _ in range(len(owed), abs(evidence.slots_leaked)):
        yield f"the counter is off by {evidence.slots_leaked}"


def _unreadable(evidence: Evidence) -> Iterator[str]:
    for run_id, row in evidence.runs.items():
        try:
            run = WorkflowRun.model_validate(row["payload"])
        except ValidationError as error:
            yield f"{run_id}: {error.errors(include_input=False, include_url=False)}"
            continue
        if run.status.value != row["status"]:
            yield f"{run_id} is {row['status']}, its payload {run.status.value}"
        if run.updated_at != row["updated_at"]:
            yield f"{run_id} was updated at {row['updated_at']}, its payload at {run.updated_at}"


def _overwritten(evidence: Evidence) -> Iterator[str]:
    for status in evidence.history.statuses:
        if status.before == "cancelled":
            yield f"{status.run_id} was cancelled and became {status.after}"
    for run_id in evidence.cancelled:
        if (status_now := evidence.runs[run_id]["status"]) != "cancelled":
            yield f"{run_id} was cancelled and is {status_now}"


_ENDS = {"succeeded": "run_succeeded", "failed": "run_failed", "cancelled": "run_cancelled"}
_LOST_ERRORS = re.compile(
    r"Worker lost: no heartbeat since |Worker stopped before the run ended\.|Worker could not renew its lease\."
)


def _unexplained(evidence: Evidence) -> Iterator[str]:
    for run in evidence.plan.runs:
        row = evidence.runs.get(run.run_id)
        if row is None or row["status"] not in TERMINAL:
            continue
        told = actions(row)
        if told[:1] != ["run_created"] or told[-1] != _ENDS[row["status"]]:
            yield f"{run.run_id} is {row['status']}, its audit log says {told}"
        elif why := _unlike(evidence, run):
            yield f"{run.run_id} ({run.act}) is {row['status']}: {why}"


def _unlike(evidence: Evidence, run: RunPlan) -> str | None:
    """Return what about the end of a run is not as its plan and its notes have it."""
    row = evidence.runs[run.run_id]
    noted = {note.event for note in evidence.notes_of[run.run_id]}
    error = str(row["payload"].get("error") or "")
    match row["status"]:
        case "succeeded" if run.act in {Act.FAIL, Act.EXIT}:
            return "it should have failed"
        case "succeeded" if ENDED not in noted:
            return f"it noted only {sorted(noted)}"
        case "cancelled" if run.run_id not in evidence.cancelled:
            return "nobody cancelled it"
        case "failed" if not _explained(evidence, run, error):
            return f"error {error[:200]!r}"
    return None


def _explained(evidence: Evidence, run: RunPlan, error: str) -> bool:
    if run.act is Act.FAIL and "it failed at" in error:
        return True
    if run.act is Act.EXIT and ("3" in error or "SystemExit" in error):
        return True
    if "because a run in it did not stop" in error:
        return _ended_with_a_blocked_loop(evidence, run)
    # A neighbour may block the loop of a worker, so that a run of a few seconds takes too long.
    return bool(_LOST_ERRORS.match(error)) or (run.seconds > 0 and error.startswith("Run timed out"))


_HOLDER = re.compile(r"loop_blocked run_id=(\S+) ")


def _ended_with_a_blocked_loop(evidence: Evidence, run: RunPlan) -> bool:
    """Return whether the run held the event loop of its runner while a neighbour was cancelled, or was lost beside one.

    The runner is ended then. Runs beside the two count as lost, and fail where lost runs do.
    """
    blocking = {each.run_id for each in evidence.plan.runs if each.act is Act.BLOCK}
    lost = re.compile(rf"run_settled run_id={run.run_id} .*\boutcome=lost\b")
    return any(
        run.run_id in holders or (holders and lost.search(log))
        for log in evidence.logs.values()
        if (holders := blocking.intersection(_HOLDER.findall(log)))
    )


def _leaked(evidence: Evidence) -> Iterator[str]:
    for name, log in evidence.logs.items():
        for secret in evidence.secrets:
            for line in (line for line in log.splitlines() if secret in line):
                yield f"{name}: {line.replace(secret, '<secret>')[:300]}"


_CRASH = re.compile(r"Traceback \(most recent call last\)|Unrecoverable error")


def _crashed(evidence: Evidence) -> Iterator[str]:
    for name, log in evidence.logs.items():
        for line in (line for line in log.splitlines() if _CRASH.search(line)):
            yield f"{name}: {line[:300]}"
    for end in evidence.exits:
        if end.hung:
            yield f"{end.unit} did not stop when it was told to"


def _repeated(evidence: Evidence) -> Iterator[str]:
    for each in finished_steps_repeated(evidence.executions, evidence.stored):
        yield f"{each.run_id} step {each.label} began at {each.at:.2f} in process {each.pid}, after it was stored"


def _unknown(evidence: Evidence) -> Iterator[str]:
    """Yield the changes that no path of the protocol has (`tests/model`). The stock worker has no ledger."""
    if evidence.fenced:
        yield from unknown_changes(evidence.history)


def _illegal(evidence: Evidence) -> Iterator[str]:
    """Yield the runs whose answers no order of the operations explains (`tests/histories`)."""
    if evidence.fenced:
        for run_id, operations in evidence.operations.items():
            if (illegal := search.check(operations)) is not None:
                yield f"{run_id}: {illegal}"


def _forgotten(evidence: Evidence) -> Iterator[str]:
    """Yield the executions whose begin is not in the database, such as one that a failover has lost."""
    known = {(move.run_id, move.fence) for move in evidence.history.moves if move.sign == "running"}
    for note in evidence.notes:
        if note.event == BEGUN and note.fence and (note.run_id, note.fence) not in known:
            yield f"{note.run_id} was executed under fence {note.fence}, under which it never began"


def _held(evidence: Evidence, run_id: str) -> bool:
    row = evidence.ledger.get(run_id)
    return row is not None and row["state"] != "settled"


def _ledger(evidence: Evidence, run_id: str) -> str:
    row = evidence.ledger.get(run_id)
    return "empty" if row is None else f"{row['state']} {row['outcome']} fence {row['fence']} {row['reason']}"


_LOOKS: dict[Column, Callable[[Evidence], Iterator[str]]] = {
    Column.LOST: _lost,
    Column.STUCK: _stuck,
    Column.TWICE: _twice,
    Column.LATE: _late,
    Column.SLOTS: _slots,
    Column.UNREADABLE: _unreadable,
    Column.OVERWRITTEN: _overwritten,
    Column.UNEXPLAINED: _unexplained,
    Column.LEAKED: _leaked,
    Column.CRASHED: _crashed,
    Column.REPEATED: _repeated,
    Column.UNKNOWN: _unknown,
    Column.ILLEGAL: _illegal,
    Column.FORGOTTEN: _forgotten,
}
