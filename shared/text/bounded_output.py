"""Write to a stream that may block, so that a full pipe whose reader hangs does not stop a process.

All writes together may wait for `WAIT_SECONDS`, and for the same time again per minute, whatever their number and the
speed of the reader. A text that cannot be written in that time is dropped and counted. There is no thread and no
queue, so this also works in a process that forks.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import IO

WAIT_SECONDS = 1.0
_REGAINED_PER_SECOND = WAIT_SECONDS / 60


class BoundedOutput:
    """Writes whole texts, or drops and counts them. Thread-safe; never raises."""

    def __init__(self, wait: float = WAIT_SECONDS) -> None:
        self._wait = wait
        self._allowance = wait
        """Seconds that writes may still wait."""
        self._counted_at = time.monotonic()
        self._lock = threading.Lock()
        self._dropped = 0
        self._torn = False

    def write(self, stream: IO[str], text: str) -> int:
        """Write `text`; return how many texts were dropped before it, or 0 if it was itself dropped."""
        with self._lock:
            with contextlib.suppress(OSError, ValueError):
                if not self._write(stream, text):
                    self._dropped += 1
                    return 0
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _write(self, stream: IO[str], text: str) -> bool:
        try:
            number = stream.fileno()
        except (OSError, ValueError, AttributeError):
            # An in-memory stream.
            stream.write(text)
            stream.flush()
            return True
        data = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        for start in range(0, len(data), select.PIPE_BUF):
            # A pipe that is ready accepts this many bytes without blocking.
            piece = data[start : start + select.PIPE_BUF]
            while piece:
                if not self._ready(number):
                    self._torn = self._torn or start > 0
                    return False
                piece = piece[os.write(number, piece) :]
        self._torn = False
        return True

    def _ready(self, number: int) -> bool:
        """Wait until a file can be written to, for the remaining allowance at most; return whether it can."""
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if poll.poll(0):
            return True
        began = time.monotonic()
        regained = (began - self._counted_at) * _REGAINED_PER_SECOND
        allowed = min(self._wait, self._allowance + regained)
        ready = bool(poll.poll(allowed * 1000))
        self._counted_at = time.monotonic()
        self._allowance = max(0.0, allowed - (self._counted_at - began))
        return ready


ERRORS = BoundedOutput()
"""For stderr, shared by all threads."""
