"""Monitor runners: whether their event loops answer, what blocks them, their size and age.

A runner without runs is pinged too, until it has answered once: a run may leave something behind that stops the event
loop later, such as a replaced clock, and the next runs would wait in it.
"""

from __future__ import annotations

import time
from typing import Any

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.metrics.model import WorkerMetrics
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.isolation import Isolation
from orcheo_dispatch.worker.runners.memory import memory_of
from orcheo_dispatch.worker.runners.runner import Runner
from orcheo_dispatch.worker.runners.verdicts import holder_of, suspect

LAG_LIMIT_SECONDS = 2.0
TICK_SECONDS = 0.5


class Watching:
    """Monitor runners, on the thread of the pool's event loop."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, isolation: Isolation) -> None:
        self._max_memory = settings.max_memory << 20
        self._max_age = settings.max_process_age
        self._metrics = metrics
        self._isolation = isolation

    def look(self, runner: Runner) -> float:
        """Check a runner; return for how long its event loop has not answered (seconds)."""
        if runner.is_in_order or (not runner.executions and (runner.dedicated or runner.draining)):
            return 0.0
        now = time.monotonic()
        self._bound_memory(runner)
        if now - runner.started_at > self._max_age:
            runner.draining = True
        lag = runner.ping(now)
        if lag > LAG_LIMIT_SECONDS and not runner.held:
            runner.held = True
            self._metrics.loop_blocked()
            self._say_held(runner, lag)
            if not runner.executions:
                runner.kill(None)
        return lag

    def answered(self, runner: Runner) -> None:
        """Note that an event loop has answered."""
        was_held, runner.held = runner.held, False
        if was_held:
            log.info("loop_unblocked", runner=runner.number)

    def lost(self, runner: Runner, runs: int) -> None:
        """Count and log a runner that ended while it executed this number of runs."""
        self._metrics.runner_lost(runner.exit_kind)
        log.warning("runner_ended", runner=runner.number, reason=runner.exit_text(), runs=runs)

    def _say_held(self, runner: Runner, lag: float) -> None:
        held, holder = runner.held_by, holder_of(runner)
        fields: dict[str, Any] = {"runner": runner.number, "seconds": round(lag, 1)}
        if held is not None:
            fields |= {"node": held.node, "node_type": held.node_type, "at": held.at}
        fields = {name: value for name, value in fields.items() if value is not None}
        # What a run left behind, such as a callback, may block the loop after the run itself has ended.
        ended = runner.given.get(held.key) if held is not None and held.key is not None else None
        run = holder.run if holder is not None else ended
        if run is None:
            suspect(runner, self._isolation)
            runs = ",".join(each.claim.run_id for each in runner.executions.values())
            log.warning("loop_blocked", **fields, **({"runs": runs} if runs else {}))
            return
        log.warning("loop_blocked", run_id=run.run_id, workflow_id=run.workflow_id, fence=run.fence, **fields)
        self._isolation.convict(run, "held its event loop")

    def _bound_memory(self, runner: Runner) -> None:
        if not self._max_memory or not runner.base_memory:
            return
        grown = memory_of(runner.pid) - runner.base_memory
        if grown > self._max_memory:
            limit = self._max_memory >> 20
            runner.kill(f"Runner was ended because it used more than ORCHEO_WORKER_MAX_MEMORY={limit} MiB")
        elif grown > self._max_memory // 2:
            runner.draining = True
