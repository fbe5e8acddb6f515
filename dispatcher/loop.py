"""Decide when to poll: on a tick, on a hint, after the delay that the last poll returned, or while Beat is silent."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from sqlalchemy import Engine

from orcheo_dispatch.dispatcher.poll import Poller, PollReport
from orcheo_dispatch.dispatcher.upkeep import Upkeep
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.processes import Process, ticked_elsewhere
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.metrics.model import DispatcherMetrics, PollResult

SILENT_INTERVALS = 5
"""Number of poll intervals without a tick after which the dispatcher polls on its own."""
_DATABASE_RETRY_SECONDS = 1.0
_SEEN_SECONDS = 5.0
_LOCK_TIMEOUT_SECONDS = 1.0


class PollLoop:
    """Polls on its own thread. All wake-ups during a poll are coalesced into one more poll."""

    def __init__(
        self,
        poller: Poller,
        process: Process,
        engine: Engine,
        *,
        interval: float,
        metrics: DispatcherMetrics,
        upkeep: Upkeep,
    ) -> None:
        """`upkeep` is notified of each successful poll and of the Beat of each tick; `interval` is in seconds."""
        self._poller = poller
        self._process = process
        self._engine = engine
        self._interval = interval
        self._metrics = metrics
        self._upkeep = upkeep
        self._wake = threading.Condition()
        self._woken = False
        self._stopping = False
        self._ticked_at = time.monotonic()
        self._beat_silent = False
        self.database_away = False
        """Whether Postgres was unavailable at the last poll."""
        self._due_at = time.monotonic()
        self.polled_at = float("-inf")
        """`time.monotonic()` of the last successful poll."""
        self._thread = threading.Thread(target=self._run, name="poll-loop", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Finish the current poll and stop."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)

    def wake(self) -> None:
        """Poll as soon as possible, because a hint arrived."""
        with self._wake:
            self._woken = True
            self._wake.notify()

    def tick(self, beat: Process) -> None:
        """Poll as soon as possible, because this Beat sent a tick."""
        with self._wake:
            self._ticked_at = time.monotonic()
            self._woken = True
            self._wake.notify()
        self._upkeep.ticked(beat)
        self._metrics.ticked()
        if self._beat_silent:
            self._beat_silent = False
            self._metrics.beat_is_silent(False)
            log.info("beat_recovered")

    def overdue(self, seconds: float) -> bool:
        """Return whether a poll is more than this many seconds late to begin, or has run for longer than that."""
        return time.monotonic() > self._due_at + seconds

    def _run(self) -> None:
        delay: float | None = 0.0
        while self._wait(delay):
            delay = self._poll_once()
        with suppress(DatabaseError):
            self._poller.finish()

    def _wait(self, delay: float | None) -> bool:
        """Wait for a wake-up, for `delay` seconds, or until Beat has been silent too long; return False to stop."""
        with self._wake:
            if not self._woken and not self._stopping:
                pause = self._patience() if delay is None else min(delay, self._patience())
                self._due_at = time.monotonic() + pause
                self._wake.wait(pause)
            self._woken = False
            self._due_at = time.monotonic()
            return not self._stopping

    def _patience(self) -> float:
        if self._beat_silent:
            return self._interval
        return max(0.0, self._ticked_at + SILENT_INTERVALS * self._interval - time.monotonic())

    def _poll_once(self) -> float | None:
        began = time.monotonic()
        try:
            report = self._poller.poll()
            self._listen_for_beat()
        except DatabaseError as error:
            self._metrics.database_failed()
            self._metrics.polled("database_away", time.monotonic() - began)
            if not self.database_away:
                self.database_away = True
                log.warning("database_unavailable", reason=str(error))
            return _DATABASE_RETRY_SECONDS
        except Exception as error:  # noqa: BLE001
            # A bug must not stop dispatching: log it with its location and continue.
            self._metrics.polled("failed", time.monotonic() - began)
            log.error("poll_failed", **describe(error))
            return _DATABASE_RETRY_SECONDS
        if self.database_away:
            self.database_away = False
            log.info("database_reconnected")
        now = time.monotonic()
        if report.dispatches:
            self.polled_at = now
            self._upkeep.polled()
        result: PollResult = "broker_away" if report.broker_error else "succeeded" if report.dispatches else "blocked"
        self._metrics.polled(result, now - began)
        _log_report(report)
        return report.next_delay

    def _listen_for_beat(self) -> None:
        """Report that Beat is silent, unless its ticks reach other dispatchers: each tick reaches only one."""
        seconds = SILENT_INTERVALS * self._interval
        if self._beat_silent or time.monotonic() - self._ticked_at < seconds:
            return
        try:
            ticked = ticked_elsewhere(
                self._engine, self._process, seconds=seconds + _SEEN_SECONDS, lock_timeout=_LOCK_TIMEOUT_SECONDS
            )
        except DatabaseError:
            ticked = False
        if ticked:
            self._ticked_at = time.monotonic()
            return
        self._beat_silent = True
        self._metrics.beat_is_silent(True)
        log.warning("beat_silent", seconds=seconds, polling="by itself")


def _log_report(report: PollReport) -> None:
    if report.claimed or report.lost or report.requeued or report.released:
        log.info(
            "polled",
            claimed=report.claimed,
            published=report.published,
            released=report.released,
            lost=report.lost,
            requeued=report.requeued,
        )
