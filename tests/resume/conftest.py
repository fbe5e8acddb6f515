"""Orcheo's API and our processes, set to resume runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.support.orcheo.orcheo_stack import stack_beside, start_afresh
from tests.support.processes.processes import Stack

_SETTINGS = {
    "ORCHEO_DISPATCH_LOST_RUNS": "resume",
    "ORCHEO_WORKER_HEARTBEAT": "0.5",
    "ORCHEO_WORKER_LEASE": "3",
    "ORCHEO_WORKER_DRAIN_TIMEOUT": "0.2",
    "ORCHEO_WORKER_CANCEL_GRACE": "1",
    "ORCHEO_DISPATCH_POLL_INTERVAL": "0.2",
}


@pytest.fixture(scope="module")
def stack(orcheo: OrcheoApi) -> Iterator[Stack]:
    """Our processes beside the API; a dispatcher is running."""
    start_afresh(orcheo)
    found = stack_beside(orcheo)
    found.environment |= _SETTINGS
    with found.running("dispatcher"):
        yield found
