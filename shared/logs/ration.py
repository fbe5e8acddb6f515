"""Limit log lines that a writer to Redis or a run's code can cause: some per minute, the rest counted."""

from __future__ import annotations

import threading
import time

_LINES = 20
_SECONDS = 60.0


class Ration:
    """Passes a number of lines per period and counts the rest. Thread-safe."""

    def __init__(self, lines: int = _LINES, seconds: float = _SECONDS) -> None:
        self._lines = lines
        self._seconds = seconds
        self._lock = threading.Lock()
        self._began = float("-inf")
        self._passed = 0
        self._left_out = 0

    def take(self) -> dict[str, int] | None:
        """Return None if the line is to be dropped, otherwise its extra fields: the number of lines dropped before."""
        with self._lock:
            now = time.monotonic()
            if now - self._began >= self._seconds:
                self._began, self._passed = now, 0
            if self._passed >= self._lines:
                self._left_out += 1
                return None
            self._passed += 1
            left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}
