"""Metrics of cron, in a worker or in a dispatcher that asks the API."""

from __future__ import annotations

from orcheo_dispatch.shared.cron.report import SKIP_REASONS, CronReport
from orcheo_dispatch.shared.metrics.instruments import Instruments


class CronCounters:
    """Counts dispatches of cron triggers, and the runs that they created and skipped."""

    def __init__(self, make: Instruments, outcomes: tuple[str, ...]) -> None:
        self._dispatches = make.counter(
            "orcheo_dispatch_cron_dispatches", "Dispatches of due cron triggers, by outcome.", outcome=outcomes
        )
        self._runs = make.counter("orcheo_dispatch_cron_runs", "Runs of cron triggers that this process created.")
        self._skipped = make.counter(
            "orcheo_dispatch_cron_triggers_skipped",
            "Times that a due trigger was skipped, by reason; it stays due.",
            reason=SKIP_REASONS,
        )

    def cron_dispatched(self, report: CronReport) -> None:
        """Count one dispatch."""
        self._dispatches(report.outcome).inc()
        self._runs().inc(report.runs)
        for reason, triggers in report.skipped.items():
            self._skipped(reason).inc(triggers)
