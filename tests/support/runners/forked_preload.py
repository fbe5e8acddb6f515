"""What the fork server of `tests.support.runners.forked_runner` imports and prepares once: `FORKED` says how."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass
from pathlib import Path

from orcheo_dispatch.worker.executor.protocol import load_executor
from orcheo_dispatch.worker.orcheo.executor import OrcheoExecutor


@dataclass(frozen=True, slots=True)
class Threads:
    """Of one process."""

    python: int
    native: int

    @classmethod
    def now(cls) -> Threads:
        """Count those of this process."""
        return cls(threading.active_count(), len(list(Path("/proc/self/task").iterdir())))


def prepared() -> tuple[OrcheoExecutor, Threads, Threads]:
    """Return a prepared executor, and the threads after its import and after `prepare`."""
    executor = load_executor("orcheo")
    assert isinstance(executor, OrcheoExecutor)
    imported = Threads.now()
    executor.prepare()
    return executor, imported, Threads.now()


EXECUTOR, IMPORTED, PREPARED = prepared()
gc.collect()
gc.freeze()
