"""An executor that executes nothing: `ORCHEO_WORKER_EXECUTOR=tests.bench.noop_executor:execute`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orcheo_dispatch.worker.executor.protocol import Run


async def execute(_run: Run) -> Mapping[str, Any]:
    """Return an empty output."""
    return {}
