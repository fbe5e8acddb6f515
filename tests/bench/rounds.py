"""Rounds in turn (A B A B), so that a machine that is slow for a while is slow for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from tests.bench.result import Series
from tests.bench.setting import Scale

type Values = Mapping[tuple[str, str], float]
"""What one round of one system found: a value by metric and unit."""


def in_turn(
    scale: Scale, systems: Mapping[str, Callable[[], Values]], *, at: float | None = None, warm_up: bool = True
) -> list[Series]:
    """Run each system once a round, one after the other; before them a warm-up round that does not count.

    Without `warm_up` for what warms up in each round, as processes do that are started anew.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for number in range(0 if warm_up and not scale.quick else 1, scale.rounds + 1):
        for system, once in systems.items():
            values = once()
            say(f"  {f'round {number}' if number else 'warm-up'}, {system}: {_shown(values)}")
            for (metric, unit), value in values.items():
                if number:
                    found.setdefault((system, metric, unit), []).append(value)
    return [Series(system, metric, unit, tuple(values), at) for (system, metric, unit), values in found.items()]


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", flush=True)


def _shown(values: Values) -> str:
    return ", ".join(f"{metric} {value:.4g} {unit}" for (metric, unit), value in values.items())
