"""Metrics of the steps of polls and of the upkeep."""

from __future__ import annotations

from typing import Literal, get_args

from orcheo_dispatch.shared.metrics.instruments import Instruments

StepName = Literal[
    "look", "reap", "reconcile", "retry", "room", "claim", "publish",
    "orphans", "count", "prune", "adopt", "slots", "admit", "questions", "processes",
]  # fmt: skip
"""The steps of a poll and of the upkeep."""
RefusedStep = Literal[
    "claim", "publish", "release", "extend", "reap", "retry", "orphans", "prune", "adopt", "slots", "admit", "push",
]  # fmt: skip
"""The steps that Postgres may reject for single runs."""


class StepCounters:
    """Counts steps that failed, and runs for which Postgres rejected a step."""

    def __init__(self, make: Instruments) -> None:
        self._failed = make.counter(
            "orcheo_dispatch_steps_failed", "Steps of polls and upkeep that failed, by step.", step=get_args(StepName)
        )
        self._refused = make.gauge(
            "orcheo_dispatch_refused_runs",
            "Runs for which Postgres rejects a step, or whose row is locked; they are retried later.",
            step=get_args(RefusedStep),
        )

    def failed(self, step: StepName) -> None:
        """Count a step that failed and was passed over."""
        self._failed(step).inc()

    def refused(self, step: str, runs: int) -> None:
        """Record for how many runs Postgres rejects this step."""
        self._refused(step).set(runs)
