"""What a run of the benchmark found: numbers by round, ratios pair by pair, targets and their verdicts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the greatest of the values that it stands for."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of `values`, at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one system, a value a round.

    `at` is the value of what is varied along a curve, such as the number of pending rows; None where nothing is.
    """

    system: str
    metric: str
    unit: str
    values: tuple[float, ...]
    at: float | None = None

    @property
    def spread(self) -> Spread:
        """Return median, least and most of the rounds."""
        return Spread.of(self.values)


@dataclass(frozen=True, slots=True)
class Target:
    """A target, and what was found: `found` is a spread of rounds or of ratios pair by pair; the median decides."""

    text: str
    found: Spread
    limit: float
    unit: str
    at_least: bool
    """Whether `limit` is the least that is wanted, else the most."""

    @property
    def met(self) -> bool:
        """Return whether the median is on the right side of the limit."""
        return self.found.median >= self.limit if self.at_least else self.found.median <= self.limit

    @property
    def missed_by(self) -> float:
        """Return by which share of the limit it is missed; 0 where it is met."""
        if self.met:
            return 0.0
        return abs(self.found.median - self.limit) / self.limit if self.limit else abs(self.found.median)


@dataclass(frozen=True, slots=True)
class Curve:
    """A plot to draw: `metric` over what `at` is, a line a system; over systems as bars where no series has an `at`.

    `name` becomes the file name, `bench-NAME.png`; `title` is the alt text too. An empty `systems` means all. Bars are
    stacked of `parts`, metrics that add up to `metric`, where there are any.
    """

    name: str
    title: str
    metric: str
    x_label: str = ""
    systems: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that one measurement found. `name` is the word for `--only`; each note becomes a paragraph of the page."""

    name: str
    title: str
    series: tuple[Series, ...]
    targets: tuple[Target, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def values(self, system: str, metric: str, at: float | None = None) -> tuple[float, ...]:
        """Return the values by round. Raises `KeyError` where there are none."""
        for each in self.series:
            if (each.system, each.metric, each.at) == (system, metric, at):
                return each.values
        raise KeyError((system, metric, at))


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the benchmark: where, with what, and what it found."""

    taken_at: str
    versions: dict[str, str]
    machine: dict[str, str]
    measurements: tuple[Measurement, ...] = field(default=())

    def to_json(self) -> str:
        """Return the raw numbers."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` wrote. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        read = json.loads(text)
        return cls(**{**read, "measurements": tuple(_measurement(each) for each in read["measurements"])})


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratios of values of the same round, which ran one right after the other.

    Pair by pair, so that a machine that is slow for a while is slow for both. Raises `ValueError` where the rounds
    do not match.
    """
    return Spread.of([our / their for our, their in zip(ours, theirs, strict=True)])


def _measurement(read: dict[str, Any]) -> Measurement:
    return Measurement(
        **{
            **read,
            "series": tuple(Series(**{**each, "values": tuple(each["values"])}) for each in read["series"]),
            "targets": tuple(Target(**{**each, "found": Spread(**each["found"])}) for each in read["targets"]),
            "curves": tuple(_curve(each) for each in read["curves"]),
            "notes": tuple(read["notes"]),
        }
    )


def _curve(read: dict[str, Any]) -> Curve:
    return Curve(**{**read, "systems": tuple(read["systems"]), "parts": tuple(read["parts"])})
