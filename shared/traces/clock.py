"""The time of spans: the host's, as OpenTelemetry expects. It decides nothing; all other times are the database's."""

from __future__ import annotations

import time


def epoch_ns(monotonic: float) -> int:
    """Return a `time.monotonic()` of this process as nanoseconds since the epoch."""
    return time.time_ns() - round((time.monotonic() - monotonic) * 1e9)
