"""Pauses between attempts to reach Redis: one policy for publishing, consuming, Beat and the readers of hints."""

from __future__ import annotations

import random

FIRST_SECONDS = 0.1
MAX_SECONDS = 1.0
"""Maximum pause. Short, because an attempt costs Redis one command and a run may be waiting for it."""


class Backoff:
    """Exponential backoff with jitter, so that processes do not reconnect at the same time.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Not thread-safe.
    """

    def __init__(self) -> None:
        self._ceiling = FIRST_SECONDS

    def next(self) -> float:
        """Return the seconds to wait after a failed attempt: between `FIRST_SECONDS` and `MAX_SECONDS`."""
        self._ceiling = min(MAX_SECONDS, 2 * self._ceiling)
        return random.uniform(FIRST_SECONDS, self._ceiling)  # noqa: S311

    def reset(self) -> None:
        """Start again with short pauses: an attempt succeeded."""
        self._ceiling = FIRST_SECONDS
