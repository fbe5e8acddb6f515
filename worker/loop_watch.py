"""Does the event loop still turn? Names the run and the node that keep it from turning, and the line they are at."""

from __future__ import annotations

import time

from shared.logs import log
from shared.metrics import WorkerMetrics
from worker.execution import Execution, Executions, execution_in
from worker.loop import EventLoop

LAG_LIMIT_SECONDS = 2.0


class LoopWatch:
    """Asks the loop for a sign of life, again and again, from another thread."""

    def __init__(self, loop: EventLoop, executions: Executions, metrics: WorkerMetrics) -> None:
        self._loop = loop
        self._executions = executions
        self._metrics = metrics
        self._echoed = True
        self._asked_at = time.monotonic()
        self._blocker: Execution | None = None
        self.blocked = False
        """Whether the loop has not answered for `LAG_LIMIT_SECONDS`."""
        self.lag = 0.0
        """Seconds that the last answer took, or that one is awaited."""

    def look(self) -> None:
        """Look whether the loop answered, and ask again."""
        now = time.monotonic()
        if self._echoed:
            self._metrics.loop_lag(self.lag)
            if self.blocked:
                log.info("loop_unblocked")
            self.blocked, self._blocker = False, None
            self._echoed, self._asked_at = False, now
            self._loop.loop.call_soon_threadsafe(self._echo)
            return
        self.lag = now - self._asked_at
        self._metrics.loop_lag(self.lag)
        if self.lag > LAG_LIMIT_SECONDS and not self.blocked:
            self.blocked = True
            self._metrics.loop_blocked()
            self._say_who()

    @property
    def hopeless(self) -> bool:
        """Whether the loop is blocked by a run that has been given up: no timeout will ever free it."""
        return self.blocked and self._blocker is not None and self._blocker not in self._executions

    def _echo(self) -> None:
        self.lag = time.monotonic() - self._asked_at
        self._echoed = True

    def _say_who(self) -> None:
        work = self._loop.at_work()
        self._blocker = execution_in(work.context)
        if self._blocker is None:
            runs = ",".join(execution.claim.run_id for execution in self._executions)
            log.warning("loop_blocked", seconds=round(self.lag, 1), at=work.at, runs=runs)
            return
        run = self._blocker.run
        named = {"node": work.node, "node_type": work.node_type}
        log.warning(
            "loop_blocked",
            seconds=round(self.lag, 1),
            run_id=run.run_id,
            workflow_id=run.workflow_id,
            fence=run.fence,
            **{name: value for name, value in named.items() if value is not None},
            at=work.at,
        )
