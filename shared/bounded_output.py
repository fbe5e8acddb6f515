"""Write to a stream that may be blocked: a full pipe whose reader hangs must not stop a process.

A write waits for a bounded time once; while the reader still hangs, what is written is dropped without waiting.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import IO

WAIT_SECONDS = 1.0


class BoundedOutput:
    """Writes whole texts, or drops them and counts. Thread-safe; never raises."""

    def __init__(self, wait: float = WAIT_SECONDS) -> None:
        self._wait = wait
        self._lock = threading.Lock()
        self._dropped = 0
        self._blocked = False
        self._torn = False

    def write(self, stream: IO[str], text: str) -> int:
        """Write `text`; return how many texts were dropped before it, 0 where it was itself dropped."""
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
            # A stream in memory.
            stream.write(text)
            stream.flush()
            return True
        data = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        deadline = time.monotonic() + (0.0 if self._blocked else self._wait)
        for start in range(0, len(data), select.PIPE_BUF):
            # A pipe that is ready takes this many bytes without blocking.
            piece = data[start : start + select.PIPE_BUF]
            while piece:
                if not _ready(number, deadline):
                    self._blocked, self._torn = True, self._torn or start > 0
                    return False
                piece = piece[os.write(number, piece) :]
        self._blocked = self._torn = False
        return True


def _ready(number: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


ERRORS = BoundedOutput()
"""For stderr, to which all threads write."""
