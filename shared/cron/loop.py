"""Decide when to dispatch due cron triggers. `CronMode` decides who creates their runs.

Beat sends a message at each interval, and one process takes it. That is a convenience: a process that sees in the
record that no process has dispatched for two intervals does so itself. Neither Beat, nor free run slots, nor Redis are
needed for cron to continue. Nothing here decides whether a trigger is due, and nothing depends on the record: if Redis
loses it, triggers are dispatched once more often.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from orcheo_dispatch.shared.cron.record import CronRecord
from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.errors import BrokerError
from orcheo_dispatch.shared.logs.lines import describe, log

SILENT_INTERVALS = 2
"""Number of intervals without a dispatch by any process after which a process dispatches on its own."""
_JITTER = 0.2
_STOP_SECONDS = 5.0


class Prompts(Protocol):
    """Source of the messages that ask for a dispatch."""

    def wait(self, seconds: float) -> bool:
        """Wait at most this many seconds for a message; return whether one arrived. Never raises."""
        ...

    def stop(self) -> None:
        """End the wait; callable from any thread, repeatedly."""
        ...


class CronMetrics(Protocol):
    """Counts dispatches."""

    def cron_dispatched(self, report: CronReport) -> None:
        """Count one dispatch."""
        ...


class EventPrompts:
    """Prompts that come from this process itself."""

    def __init__(self) -> None:
        self._given = threading.Event()

    def give(self) -> None:
        """Ask for a dispatch."""
        self._given.set()

    def wait(self, seconds: float) -> bool:
        """Wait for `give`."""
        given = self._given.wait(seconds)
        self._given.clear()
        return given

    def stop(self) -> None:
        """End the wait."""
        self._given.set()


class CronLoop:
    """Dispatches on a thread of its own: when a message asks for it, and unasked when no other process does."""

    def __init__(
        self,
        dispatch: Callable[[], CronReport | None],
        prompts: Prompts,
        record: CronRecord,
        *,
        interval: float,
        metrics: CronMetrics,
        close: Callable[[], None],
    ) -> None:
        """`dispatch` returns None if it may not be tried yet, and never raises; `close` is called after the last."""
        self._dispatch = dispatch
        self._prompts = prompts
        self._record = record
        self._interval = interval
        self._metrics = metrics
        self._close = close
        self._stopping = threading.Event()
        self._failed = ""
        self._dispatched_at = float("-inf")
        self._look_at = time.monotonic() + min(1.0, interval) * random.random()  # noqa: S311 - many start at once
        self._thread = threading.Thread(target=self._run, name="cron", daemon=True)

    def start(self) -> None:
        """Start to dispatch."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Begin no further dispatch; return at once."""
        self._stopping.set()

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """Begin no further dispatch, and wait for the one in progress."""
        self._stopping.set()
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._prompts.stop()
            self._thread.join(0.05)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 - a fault of ours must not end cron
                    log.error("cron_failed", **describe(error))
                    self._stopping.wait(self._interval)
        finally:
            self._close()

    def _turn(self) -> None:
        prompted = self._prompts.wait(max(0.0, self._look_at - time.monotonic()))
        if self._stopping.is_set():
            return
        if prompted:
            self._dispatch_now(by_itself=False)
        elif time.monotonic() >= self._look_at and self._nobody_dispatches():
            self._dispatch_now(by_itself=True)

    def _nobody_dispatches(self) -> bool:
        """Read the record; if others dispatch, check again when the next dispatch would be overdue."""
        try:
            seen = self._record.success()
            # A process that dispatches on its own keeps the interval; Beat is late only after two.
            limit = self._interval * (1 if seen is None or seen.by_itself else SILENT_INTERVALS)
            age = limit if seen is None else seen.age
            if age >= limit and self._record.take_turn(self._interval):
                return True
        except BrokerError:
            # Redis is unavailable and no message arrives: each process dispatches at its own interval.
            return True
        self._look_again_in(limit - age if age < limit else self._interval)
        return False

    def _look_again_in(self, seconds: float) -> None:
        self._look_at = time.monotonic() + seconds * (1 + _JITTER * random.random())  # noqa: S311

    def _dispatch_now(self, *, by_itself: bool) -> None:
        self._look_again_in(self._interval * (1 if by_itself else SILENT_INTERVALS))
        report = self._dispatch()
        if report is None:
            if by_itself:
                self._record.leave_turn()
            return
        self._metrics.cron_dispatched(report)
        self._record.note(report, by_itself=by_itself)
        self._say(report, by_itself=by_itself)

    def _say(self, report: CronReport, *, by_itself: bool) -> None:
        """Log the result; log a failure only once for as long as it stays the same."""
        if report.outcome in ("succeeded", "busy"):
            recovered, self._failed = bool(self._failed), ""
            if report.runs or recovered:
                log.info("cron_dispatched", runs=report.runs, by_itself=by_itself)
            return
        failed = f"{report.outcome}: {report.reason}"
        if failed != self._failed:
            log.warning("cron_not_dispatched", outcome=report.outcome, reason=report.reason)
        self._failed = failed
