"""The metrics of this process, read as a scrape of Prometheus would read them, and how its counters grew."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PREFIX = "orcheo_dispatch_"
_KEEP_SECONDS = 960.0
"""Longer than the longest window of a rule, 15 minutes."""

type Series = tuple[str, frozenset[tuple[str, str]]]
"""Name and labels of one sample."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the database knows; empty where this process did not ask, or where it did not answer."""

    ended: int = 0
    failed: int = 0
    """Of the runs that ended within 15 minutes."""
    restarts: Mapping[str, float] = field(default_factory=dict)
    """Number of processes that vanished soon after their start, by kind and host."""
    dispatchers: int | None = None
    """Number of dispatchers that are alive; None: not asked."""


class Readings:
    """Samples over the last 16 minutes. `collect` returns the current ones. Not thread-safe."""

    def __init__(
        self, collect: Callable[[], Mapping[Series, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._collect = collect
        self._clock = clock
        self._taken: deque[tuple[float, Mapping[Series, float]]] = deque()
        self.facts = Facts()

    def take(self) -> None:
        """Read all samples now."""
        now = self._clock()
        samples = {series: value for series, value in self._collect().items() if series[0].startswith(PREFIX)}
        self._taken.append((now, samples))
        while len(self._taken) > 2 and self._taken[1][0] < now - _KEEP_SECONDS:
            self._taken.popleft()

    def value(self, name: str, **labels: str) -> float | None:
        """Return the current sample; None if there is none, for example because a server does not answer."""
        return self._taken[-1][1].get(_series(name, labels)) if self._taken else None

    def values(self, name: str, label: str) -> dict[str, float]:
        """Return the current samples of a metric by the value of one label."""
        samples = self._taken[-1][1] if self._taken else {}
        found = {}
        for (each, labels), value in samples.items():
            if each == PREFIX + name and label in dict(labels):
                found[dict(labels)[label]] = value
        return found

    def increase(self, name: str, seconds: float, **labels: str) -> float:
        """Return by how much a counter grew within the last `seconds`; it was 0 when this process started."""
        if not self._taken:
            return 0.0
        now, newest = self._taken[-1]
        series = _series(name, labels)
        before = 0.0
        for at, samples in self._taken:
            if at > now - seconds:
                break
            before = samples.get(series, 0.0)
        return newest.get(series, 0.0) - before


def _series(name: str, labels: Mapping[str, str]) -> Series:
    return PREFIX + name, frozenset(labels.items())
