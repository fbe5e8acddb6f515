"""Read the database for all browsers on one thread, so that queries are bounded and polls never wait for the page.

It reads every two seconds while a browser is active and every 15 seconds otherwise, to know when the level changed.
It pauses twenty times as long as a read took, so that readers do not slow down a slow database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Engine

from orcheo_dispatch.dispatcher.page import verdict
from orcheo_dispatch.dispatcher.page.figures import Figures, Row, named, read_figures
from orcheo_dispatch.dispatcher.page.story import story_of
from orcheo_dispatch.dispatcher.page.verdict import Problem, Verdict, problems_of
from orcheo_dispatch.shared.database.connections import transaction
from orcheo_dispatch.shared.database.sqlstate import Failure, failure_of
from orcheo_dispatch.shared.errors import DatabaseError, SchemaError
from orcheo_dispatch.shared.health.checks import Check
from orcheo_dispatch.shared.ledger.overview import Wanted, names_of, runs_of
from orcheo_dispatch.shared.logs.lines import describe, log

RUNS = 25
_FRESH_SECONDS = 2.0
_IDLE_SECONDS = 15.0
_SHARE = 20.0
_GAP_SECONDS, _GAP_SHARE = 0.2, 4.0
"""Minimum pause before a newly selected list or run is read (seconds); selecting must not load the database."""
_PATIENCE_SECONDS = 1.5
_WATCHED_SECONDS = 15.0
_CHOICES = 8
_STATEMENT_MILLISECONDS = 2_000
_SILENT_SECONDS = 10.0
"""A read that takes longer than this means that the database does not answer: each statement is limited to two."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What to show. `figures` and `runs` are the last ones that were read; None before the first read."""

    health: dict[str, Any]
    figures: Figures | None
    runs: list[Row] | None
    names: dict[str, str]
    ago: float | None
    """Seconds since the figures were read."""


@dataclass(frozen=True, slots=True)
class SeenRun:
    """What happened to one run: empty if there is no such run, or the problem that prevents reading it."""

    story: Row | Problem
    ago: float
    """Seconds since it was read; infinite before the first read."""


@dataclass(slots=True)
class _Choice[T]:
    asked_at: float
    read_at: float = float("-inf")
    found: T | None = None


class Watch:
    """Reads from `start` to `stop`. It owns its engine."""

    def __init__(self, engine: Engine, *, checks: Sequence[Check]) -> None:
        self._engine = engine
        self._checks = checks
        self._verdict = Verdict()
        self._change = threading.Condition()
        self._stopping = False
        self._figures: Figures | None = None
        self._names: dict[str, str] = {}
        self._trouble: Problem | None = None
        self._choices: dict[Wanted, _Choice[list[Row]]] = {}
        self._stories: dict[str, _Choice[Row | Problem]] = {}
        self._read_at = float("-inf")
        self._began_at: float | None = None
        self._rest_until = self._gap_until = float("-inf")
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading and close the connections; if a read is in progress, they are closed when it ends."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_SECONDS)

    def look(self, wanted: Wanted) -> Seen:
        """Return what to show, within 1.5 seconds. Never raises."""
        with self._change:
            choice = self._ask(self._choices, wanted)
            figures, names, runs = self._figures, self._names, choice.found
            ago = None if figures is None else time.monotonic() - self._read_at
        return Seen(self._judge(), figures, runs, names, ago)

    def tell(self, run_id: str) -> SeenRun | None:
        """Return what happened to a run, within 1.5 seconds; None if it was not read in this time. Never raises."""
        with self._change:
            choice = self._ask(self._stories, run_id)
            found = self._trouble if choice.found is None else choice.found
            return None if found is None else SeenRun(found, time.monotonic() - choice.read_at)

    def _ask[K, T](self, choices: dict[K, _Choice[T]], wanted: K) -> _Choice[T]:
        """Remember the selection of a reader, and wait until it was read. Only the last few are kept, in order."""
        choice = choices.pop(wanted, None) or _Choice[T](0.0)
        choice.asked_at = time.monotonic()
        choices[wanted] = choice
        while len(choices) > _CHOICES:
            choices.pop(next(iter(choices)))
        self._change.notify_all()
        self._change.wait_for(lambda: self._served(choice), _PATIENCE_SECONDS)
        return choice

    def _served(self, choice: _Choice[Any]) -> bool:
        if self._stopping or self._trouble is not None or self._silent():
            return True
        # During the pause after a slow read, no newer result will come.
        return choice.found is not None and not self._stale(choice.read_at) and not self._stale(self._read_at)

    def _stale(self, read_at: float) -> bool:
        now = time.monotonic()
        return now - read_at > 2 * _FRESH_SECONDS and now >= self._rest_until

    def _silent(self) -> bool:
        return self._began_at is not None and time.monotonic() - self._began_at > _SILENT_SECONDS

    def _judge(self) -> dict[str, Any]:
        trouble = verdict.DATABASE_AWAY if self._silent() else self._trouble
        reports = [check.report() for check in self._checks]
        found = problems_of(trouble, reports, self._figures)
        return {**self._verdict.note(found), "checks": [asdict(report) for report in reports]}

    def _run(self) -> None:
        try:
            self._read_on()
        finally:
            # Here, while no statement is running: a connection in use would be left open.
            self._engine.dispose()

    def _read_on(self) -> None:
        while self._wait():
            self._began_at = began = time.monotonic()
            trouble = self._read()
            now = time.monotonic()
            with self._change:
                self._began_at = None
                self._trouble = trouble
                self._rest_until = now + max(_FRESH_SECONDS, _SHARE * (now - began))
                self._gap_until = now + max(_GAP_SECONDS, _GAP_SHARE * (now - began))
                self._change.notify_all()
            self._judge()

    def _wait(self) -> bool:
        """Wait until a read is due; return False to stop."""
        with self._change:
            while not self._stopping:
                pause = self._due_at() - time.monotonic()
                if pause <= 0:
                    return True
                self._change.wait(pause)
            return False

    def _due_at(self) -> float:
        now = time.monotonic()
        watched: list[_Choice[Any]] = [*_watched(self._choices, now).values(), *_watched(self._stories, now).values()]
        if any(choice.found is None for choice in watched) and self._trouble is None:
            return self._gap_until
        return self._rest_until if watched else self._rest_until + _IDLE_SECONDS - _FRESH_SECONDS

    def _read(self) -> Problem | None:
        """Read the figures, the selected runs and the opened one; return the problem that prevented it, if any."""
        now = time.monotonic()
        with self._change:
            wanted, opened = _watched(self._choices, now), _watched(self._stories, now)
        try:
            with transaction(self._engine, timeout_milliseconds=_STATEMENT_MILLISECONDS, read_only=True) as connection:
                figures = self._figures
                if figures is None or now >= self._rest_until:
                    figures = read_figures(connection)
                runs = {w: runs_of(connection, w, limit=RUNS) for w in wanted}
                names = names_of(connection, _workflows(figures, [*wanted], [*runs.values()]))
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread
            return _trouble_of(error)
        stories = {run_id: self._read_story(run_id) for run_id in opened}
        with self._change:
            if figures is not self._figures:
                lists = {name: None if rows is None else named(rows, names) for name, rows in figures.lists.items()}
                self._figures = replace(figures, lists=lists)
                self._read_at = now
            self._names = names
            for each, choice in wanted.items():
                choice.found, choice.read_at = named(runs[each], names), now
            for run_id, story in opened.items():
                story.found, story.read_at = stories[run_id], now
        return None

    def _read_story(self, run_id: str) -> Row | Problem:
        """Read one run in a transaction of its own: a run that cannot be read must not hide the figures."""
        try:
            with transaction(self._engine, timeout_milliseconds=_STATEMENT_MILLISECONDS, read_only=True) as connection:
                return story_of(connection, run_id)
        except Exception as error:  # noqa: BLE001 - as above
            return _trouble_of(error)


def _watched[K, T](choices: dict[K, _Choice[T]], now: float) -> dict[K, _Choice[T]]:
    return {wanted: choice for wanted, choice in choices.items() if now - choice.asked_at < _WATCHED_SECONDS}


def _workflows(figures: Figures, wanted: list[Wanted], runs: list[list[Row]]) -> list[str]:
    lists = [*figures.lists.values(), figures.isolated, figures.policies, figures.operations, *runs]
    rows = [row for each in lists if each is not None for row in each]
    chosen = [each.workflow for each in wanted if each.workflow]
    return sorted({*figures.workflows, *chosen, *(row["workflow_id"] for row in rows if row["workflow_id"])})


def _trouble_of(error: Exception) -> Problem:
    if not isinstance(error, DatabaseError):
        log.error("page_read_failed", **describe(error))
        return verdict.DATABASE_SLOW
    if isinstance(error, SchemaError):
        return verdict.DATABASE_REFUSES
    slow = failure_of(error.__cause__) is Failure.TIMEOUT
    return verdict.DATABASE_SLOW if slow else verdict.DATABASE_AWAY
