"""Orcheo as the executor, with the fence where the nodes of a trial find it."""

from __future__ import annotations

from orcheo_dispatch.worker.executor.protocol import Output, Run
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor
from tests.faults.acts import fence_of_run


class FencedOrcheo(OrcheoExecutor):
    """Executes as `orcheo` does; the tasks of a run inherit the variable."""

    async def execute(self, run: Run) -> Output:
        """Execute the run."""
        fence_of_run.set(run.fence)
        return await super().execute(run)
