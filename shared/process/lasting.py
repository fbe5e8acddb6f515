"""Threads that survive any error in a turn and publish the time of their last turn."""

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
    """A queue from many threads to one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T | object] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        """Add an item, from any thread."""
        self._queue.put(item)

    def empty(self) -> bool:
        """Return whether the inbox is empty."""
        return self._queue.empty()

    def wake(self) -> None:
        """Interrupt the wait in `take`, from any thread."""
        self._queue.put(_WAKE)

    def take(self, timeout: float, *, most: int) -> list[T]:
        """Wait up to `timeout` seconds for an item; return up to `most` items that have arrived."""
        found: list[Any] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait())
            while len(found) < most:
                found.append(self._queue.get_nowait())
        return [each for each in found if each is not _WAKE]


class LastingThread:
    """Calls `turn` repeatedly until it is stopped, whatever `turn` raises, including `SystemExit`.

    `turn` must return within seconds; without work it waits for about one second. If it fails, it must restore the
    items it was processing. `idle` returns whether no work is left; a stop waits for that.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], None],
        *,
        idle: Callable[[], bool] = lambda: True,
        inbox: Inbox[Any] | None = None,
    ) -> None:
        """If turns wait on an inbox, pass it as `inbox`, so that a stop interrupts the wait."""
        self._turn = turn
        self._idle = idle
        self._inbox = inbox
        self._stopping = threading.Event()
        self.turned_at = time.monotonic()
        """`time.monotonic()` when the last turn began or last noted progress; see `note_progress`."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the turns."""
        self._thread.start()

    def stop(self, *, timeout: float | None = None) -> None:
        """Stop after the current turn, once no work is left; wait up to `timeout` seconds for that."""
        self._stopping.set()
        if self._inbox is not None:
            self._inbox.wake()
        self._thread.join(timeout)

    def pause(self, seconds: float) -> bool:
        """Wait for `seconds` or until a stop; return whether the thread is stopping. For use within `turn`."""
        return self._stopping.wait(seconds)

    def note_progress(self) -> None:
        """Note progress within a long turn."""
        self.turned_at = time.monotonic()

    @property
    def makes_progress(self) -> bool:
        """Whether the thread is alive and has begun a turn or noted progress within the last few seconds."""
        return self._thread.is_alive() and time.monotonic() - self.turned_at <= _TURN_SECONDS

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._idle()):
            try:
                self.note_progress()
                self._turn()
            except BaseException as error:  # noqa: BLE001 - whatever it is, all runs of the process rely on this thread
                # Even a failing logger must not end the thread.
                with contextlib.suppress(BaseException):
                    log.error("turn_failed", thread=self._thread.name, **describe(error))
                self._stopping.wait(_PAUSE_SECONDS)
