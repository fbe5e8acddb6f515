"""What is measured, in order. Each is a module with `measure(setting, scale) -> Measurement`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from tests.bench.result import Measurement
from tests.bench.setting import Scale, Setting

ALL = ("trivial", "waiting", "noop", "latency", "claim", "idle", "start", "webhook", "floor", "scale")
"""What `make bench` measures."""
OTHERS = ("outages", "policies", "resuming", "traces")
"""What is measured only when it is asked for."""


def load(name: str) -> Callable[[Setting, Scale], Measurement]:
    """Return the function that measures it."""
    function: Callable[[Setting, Scale], Measurement] = importlib.import_module(f"tests.bench.{name}").measure
    return function
