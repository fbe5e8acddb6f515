"""Orcheo as the executor, with the fence where the nodes of a trial find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor
from tests.faults.acts import fence_of_run


class FencedOrcheo(OrcheoExecutor):
    """Executes as `orcheo` does; the tasks of a run inherit the variable."""

    async def execute(self, run: Run) -> Mapping[str, Any] | None:
        """Execute the run."""
        fence_of_run.set(run.fence)
        return await super().execute(run)
