"""Decide how healthy dispatch is and since when, what is wrong, and what an operator can do about it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from orcheo_dispatch.dispatcher.page.figures import Figures
from orcheo_dispatch.shared.health.checks import Report

_REMEMBERED = 20


class Level(StrEnum):
    """Overall state. Degraded: runs are executed, but an operator should look."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in one or two sentences, what to do about it, and the command that helps."""

    name: str
    level: Level
    text: str
    mend: str
    command: str
    see: str | None = None
    """The part of the page to look at."""


DATABASE_AWAY = Problem(
    "database",
    Level.UNHEALTHY,
    "Postgres does not answer. Nothing is dispatched until it does; no run is lost.",
    "Check that it is running and that ORCHEO_POSTGRES_DSN leads to it.",
    "orcheo-dispatch check",
)
DATABASE_REFUSES = Problem(
    "database",
    Level.UNHEALTHY,
    "A table is missing in Postgres, or this dispatcher lacks a privilege.",
    "Find out what is missing. orcheo-dispatch migrate creates tables, orcheo-dispatch roles grants privileges.",
    "orcheo-dispatch check",
)
DATABASE_SLOW = Problem(
    "figures",
    Level.DEGRADED,
    "Postgres is too slow for this page. Runs are dispatched; these figures are old.",
    "Look for long transactions, and for tables that were never analysed.",
    "orcheo-dispatch check",
)
_POLL = "The polls of this dispatcher fail"


def problems_of(trouble: Problem | None, checks: Sequence[Report], figures: Figures | None) -> list[Problem]:
    """Return all problems, unhealthy ones first. If the database is unavailable, its figures are left out."""
    found = [] if trouble is None else [trouble]
    away = trouble is not None and trouble.level is Level.UNHEALTHY
    # A poll without a database cannot succeed: one message is enough.
    found += [_failed(check) for check in checks if not check.ok and not (away and check.name == "poll")]
    if figures is not None and not away:
        found += _found_in(figures)
    return sorted(found, key=lambda problem: problem.level is not Level.UNHEALTHY)


def _failed(check: Report) -> Problem:
    if check.name == "broker":
        return Problem(
            "broker",
            Level.UNHEALTHY,
            "Redis is unavailable. Pending runs wait in the database; none is lost.",
            "Check that it is running and that REDIS_URL leads to it.",
            "orcheo-dispatch check",
        )
    text = f"{_POLL}: {check.why}." if check.name == "poll" else f"{check.name}: {check.why}."
    return Problem(check.name, Level.UNHEALTHY, text, "See the log of this process.", "orcheo-dispatch check")


def _found_in(figures: Figures) -> list[Problem]:
    found = []
    if not figures.alive("worker"):
        found.append(
            Problem(
                "workers",
                Level.UNHEALTHY,
                f"No worker is alive. {_runs(figures.now['pending'], 'waits', 'wait')} for one.",
                "Start one.",
                "orcheo-dispatch worker",
            )
        )
    if figures.promise["late"]:
        found.append(_late(figures.promise))
    if stuck := figures.now["stuck"]:
        found.append(
            Problem(
                "stuck",
                Level.DEGRADED,
                f"{_runs(stuck, 'is', 'are')} running without a live worker.",
                "If this persists, requeue them, fail them or cancel them.",
                "orcheo-dispatch runs --stuck",
            )
        )
    found += _of_others(figures)
    if not figures.alive("beat"):
        found.append(
            Problem(
                "beat",
                Level.DEGRADED,
                "No Beat ticks. Dispatchers and cron continue without it.",
                "Start one.",
                "orcheo-dispatch beat",
            )
        )
    return found


def _late(promise: Mapping[str, Any]) -> Problem:
    late, paused, limited = promise["late"], promise["late_paused"], promise["late_limited"]
    text = f"{_runs(late, 'has', 'have')} been pending for more than {promise['late_after'] // 60} minutes."
    for count, why in ((paused, "paused"), (limited, "held back by a limit")):
        if count:
            text += f" {_share(count, late)} {why}."
    if requeued := promise["late_requeued"]:
        text += f" {_share(requeued, late)} requeued: the age of a run counts from its creation."
    if paused + limited == late:
        mend = "Nothing is broken: policies of operators hold them back."
        return Problem("late", Level.DEGRADED, text, mend, "orcheo-dispatch policy list", "policies")
    mend = "Start more workers, or raise ORCHEO_WORKER_CONCURRENCY."
    if paused + limited > late / 2:
        mend = f"Policies of operators hold most of them back. For the others: {mend[0].lower()}{mend[1:]}"
    see = "policies" if paused or limited else "backlog"
    return Problem("late", Level.UNHEALTHY, text, mend, "orcheo-dispatch runs --pending", see)


def _share(count: int, all_runs: int) -> str:
    if count == all_runs:
        return "All of them are" if count > 1 else "It is"
    return f"{count:,} of them {'are' if count > 1 else 'is'}"


def _of_others(figures: Figures) -> list[Problem]:
    found = []
    if unclaimed := figures.now["unclaimed"]:
        found.append(
            Problem(
                "unclaimed",
                Level.DEGRADED,
                f"{_runs(unclaimed, 'is', 'are')} pending that no dispatcher will claim. Each holds a run slot.",
                "Add its label to ORCHEO_DISPATCH_TRIGGERS, or cancel it.",
                "orcheo-dispatch runs --unclaimed",
            )
        )
    if elsewhere := figures.now["begun_elsewhere"]:
        found.append(
            Problem(
                "begun_elsewhere",
                Level.DEGRADED,
                f"{_runs(elsewhere, 'was', 'were')} begun by the API itself, or by Orcheo's own worker.",
                "Set ORCHEO_INPROCESS_EXECUTION=false for the API, and stop Orcheo's own worker.",
                "orcheo-dispatch check",
            )
        )
    return found


def _runs(count: int, one: str, many: str) -> str:
    return f"{count or 'No'} run {one}" if count < 2 else f"{count:,} runs {many}"


@dataclass(frozen=True, slots=True)
class _Change:
    at: float
    level: Level
    problems: tuple[str, ...]


class Verdict:
    """The level that this process has observed, and its last changes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: deque[_Change] = deque(maxlen=_REMEMBERED)

    def note(self, problems: Sequence[Problem]) -> Mapping[str, Any]:
        """Record the current problems; return level, problems and changes for JSON. `for` and `ago` are seconds."""
        level = max((problem.level for problem in problems), key=list(Level).index, default=Level.HEALTHY)
        names = tuple(problem.name for problem in problems)
        now = time.monotonic()
        with self._lock:
            if not self._changes or self._changes[-1].level is not level:
                self._changes.append(_Change(now, level, names))
            changes = list(self._changes)
        ends = [change.at for change in changes[1:]] + [now]
        return {
            "level": level,
            "for": now - changes[-1].at,
            "problems": [asdict(problem) for problem in problems],
            "changes": [
                {"level": change.level, "problems": change.problems, "ago": now - change.at, "for": end - change.at}
                for change, end in zip(changes, ends, strict=True)
            ][::-1],
        }
