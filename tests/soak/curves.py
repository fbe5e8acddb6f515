"""Curves of what was sampled, and the verdict on each: flat, or how much it grows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

LEAST_POINTS = 10
"""Points after the warm-up without which a curve has no verdict."""
MOST_POINTS = 400
"""Maximum number of points, evenly chosen, between which slopes are computed: n points have n (n - 1) / 2 slopes."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a curve may do: grow by `share` of its median or by `floor`, whichever is more; or stay below `most`."""

    unit: str
    share: float = 0.05
    floor: float = 0.0
    most: float | None = None


@dataclass
class Curve:
    """Values over seconds from the start."""

    name: str
    bound: Bound
    points: list[tuple[float, float]] = field(default_factory=list)

    def after(self, seconds: float) -> list[tuple[float, float]]:
        """Return the points from then on."""
        return [point for point in self.points if point[0] >= seconds]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a curve ended. `growth` is that of its trend over the time that counts, in the curve's unit."""

    curve: Curve
    median: float
    highest: float
    growth: float
    allowed: float
    flat: bool


def judge(curve: Curve, warm_up: float) -> Verdict:
    """Judge a curve by what came after `warm_up` seconds. Raises `ValueError` if that are fewer than `LEAST_POINTS`."""
    points = curve.after(warm_up)
    if len(points) < LEAST_POINTS:
        raise ValueError(f"{curve.name} has {len(points)} points after {warm_up:g} s; {LEAST_POINTS} are needed")
    values = [value for _, value in points]
    median, highest = statistics.median(values), max(values)
    growth = slope(points) * (points[-1][0] - points[0][0])
    allowed = max(curve.bound.floor, curve.bound.share * abs(median))
    flat = highest <= curve.bound.most if curve.bound.most is not None else growth <= allowed
    return Verdict(curve, median, highest, growth, allowed, flat)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points (Theil 1950, Sen 1968): outliers do not move it."""
    step = -(-len(points) // MOST_POINTS)
    pairs = combinations(points[::step], 2)
    return statistics.median((after - before) / (then - now) for (now, before), (then, after) in pairs if then > now)


def table(verdicts: Mapping[str, Verdict]) -> str:
    """Return the verdicts as a table in Markdown."""
    lines = ["| curve | median | highest | growth of the trend | allowed | |", "|---|---|---|---|---|---|"]
    for name, verdict in verdicts.items():
        bound = verdict.curve.bound
        allowed = f"{verdict.allowed:+,.3g}" if bound.most is None else f"at most {bound.most:,.3g}"
        lines.append(
            f"| {name}, {bound.unit} | {verdict.median:,.4g} | {verdict.highest:,.4g} | {verdict.growth:+,.3g} |"
            f" {allowed} | {'flat' if verdict.flat else '**grows**'} |"
        )
    return "\n".join(lines)
