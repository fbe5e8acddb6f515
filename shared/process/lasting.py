"""Threads that survive any error in one turn and publish when their last turn was."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from orcheo_dispatch.shared.logs.lines import describe, log

_PAUSE_SECONDS = 0.1
_TURN_SECONDS = 5.0
_WAKE = object()


class Inbox[T]:
    """What other threads have put in for one thread to take."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T | object] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        """Put something in, from any thread."""
        self._queue.put(item)

    def empty(self) -> bool:
        """Return whether there is nothing to take."""
        return self._queue.empty()

    def wake(self) -> None:
        """End the wait of `take`, from any thread."""
        self._queue.put(_WAKE)

    def take(self, timeout: float, *, most: int) -> list[T]:
        """Wait for items, for `timeout` seconds at most; return those that have arrived, at most `most`."""
        found: list[Any] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait())
            while len(found) < most:
                found.append(self._queue.get_nowait())
        return [each for each in found if each is not _WAKE]


class LastingThread:
    """Calls `turn` repeatedly until it is stopped, whatever that raises, `SystemExit` included.

    `turn` returns within seconds: without work it waits for about one. What it is processing when it
    fails, it must restore itself. `idle` returns whether no work is left; until then a stop waits.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], None],
        *,
        idle: Callable[[], bool] = lambda: True,
        inbox: Inbox[Any] | None = None,
    ) -> None:
        """With `inbox` a turn waits for what comes there, and a stop ends that wait."""
        self._turn = turn
        self._idle = idle
        self._inbox = inbox
        self._stopping = threading.Event()
        self.turned_at = time.monotonic()
        """`time.monotonic()` of the moment when the last turn began; see `note_progress`."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Turn from now on."""
        self._thread.start()

    def stop(self, *, timeout: float | None = None) -> None:
        """End after the last turn, as soon as nothing is left to do; wait for that, for `timeout` seconds at most."""
        self._stopping.set()
        if self._inbox is not None:
            self._inbox.wake()
        self._thread.join(timeout)

    def pause(self, seconds: float) -> bool:
        """Wait until the timeout or a stop; return whether it is stopped. For use within `turn`."""
        return self._stopping.wait(seconds)

    def note_progress(self) -> None:
        """Say, within a long turn, that it makes progress."""
        self.turned_at = time.monotonic()

    @property
    def makes_progress(self) -> bool:
        """Whether it is alive and has begun a turn, or noted progress, within the last few seconds."""
        return self._thread.is_alive() and time.monotonic() - self.turned_at <= _TURN_SECONDS

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._idle()):
            try:
                self.note_progress()
                self._turn()
            except BaseException as error:  # noqa: BLE001 - whatever it is, all runs of the process rely on this thread
                # Not even a logger that fails may end it.
                with contextlib.suppress(BaseException):
                    log.error("turn_failed", thread=self._thread.name, **describe(error))
                self._stopping.wait(_PAUSE_SECONDS)
