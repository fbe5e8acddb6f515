"""Stop runs at their timeout, and have their runners ended if they continue after the grace time."""

from __future__ import annotations

import threading
import time

from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.worker.execution import Execution, Executions, Stop

LOOK_SECONDS = 0.1


class Deadlines:
    """Check every run periodically, from a thread: a run may be blocking the event loop.

    A check takes less than one microsecond per run. There is no timer per run: at a thousand runs per second that take
    milliseconds but may take an hour, each run would leave a timer behind. While there are no runs, the thread sleeps.
    """

    def __init__(self, executions: Executions, *, grace: float) -> None:
        self._executions = executions
        self._grace = grace
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking. Call it when no runs remain."""
        self._stopping.set()
        self._executions.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            now = time.monotonic()
            for execution in self._executions:
                self._look(execution, now)
            self._executions.wait_until_any(self._stopping)

    def _look(self, execution: Execution, now: float) -> None:
        if execution.result is not None:
            return
        if execution.stopped_at is None:
            if now - execution.begun_at >= execution.timeout:
                execution.stop(Stop.TIMED_OUT)
        elif now - execution.stopped_at >= self._grace:
            run = execution.run
            if execution.give_up():
                log.warning("run_ignored_stop", run_id=run.run_id, workflow_id=run.workflow_id, fence=run.fence)
