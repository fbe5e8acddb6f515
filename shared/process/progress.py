"""Watch everything that must make progress, try remedies if it does not, and finally end the process.

A process that is alive but does nothing is worse than one that has exited, because nothing restarts it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orcheo_dispatch.shared.logs.lines import describe, log

EXIT_STALLED = 1
"""Exit code of a process that makes no progress: a general failure, not a code of its own."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """Something that must make progress: `getting_on` is called every second and may be False for `patience` seconds.

    After that the remedies are tried, one every `patience` seconds; the last one is repeated.
    """

    name: str
    getting_on: Callable[[], bool]
    remedies: Sequence[Callable[[], None]]
    patience: float


class ProgressWatch:
    """Checks everything that must make progress, on its own thread.

    After each check that finds nothing stalled, it calls `on_well`, which feeds the service manager's watchdog. The
    watchdog ends what this thread cannot: a process that hangs as a whole, or whose remedies do not help.
    """

    def __init__(self, *watched: Watched, on_well: Callable[[], None] | None = None) -> None:
        self.well_at = time.monotonic()
        """`time.monotonic()` of the last check that found nothing stalled."""
        self._on_well = on_well
        self._states = [_State(each) for each in watched]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking: a process that is ending need not make progress."""
        self._stopping.set()

    def look(self) -> None:
        """Check once, on the caller's thread."""
        for state in self._states:
            try:
                state.look()
            except Exception as error:  # noqa: BLE001 - who watches must not be the first to fall
                log.error("progress_check_failed", what=state.watched.name, **describe(error))
        if not any(state.stalled for state in self._states):
            self.well_at = time.monotonic()
            if self._on_well is not None:
                self._on_well()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.look()


class _State:
    """The state of one watched item."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self._since = time.monotonic()
        self._tried = 0

    @property
    def stalled(self) -> bool:
        """Whether a remedy was tried and there is no progress yet."""
        return self._tried > 0

    def look(self) -> None:
        now = time.monotonic()
        if self.watched.getting_on():
            if self._tried:
                log.info("recovered", what=self.watched.name)
            self._since, self._tried = now, 0
        elif now - self._since >= self.watched.patience:
            remedy = self.watched.remedies[min(self._tried, len(self.watched.remedies) - 1)]
            log.warning("stalled", what=self.watched.name, seconds=round(now - self._since, 1), remedy=remedy.__name__)
            self._since, self._tried = now, self._tried + 1
            remedy()


def exit_now() -> None:
    """End this process immediately: there is nothing to save, and its service manager restarts it."""
    log.error("exit_stalled", code=EXIT_STALLED)
    os._exit(EXIT_STALLED)
