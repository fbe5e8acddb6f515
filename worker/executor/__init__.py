"""Executors, which execute runs: their protocol, and what they may use.

Your own executor imports `Run`, `RunRejectedError` and `Stopped` from here; see docs/executors.md.
"""

from orcheo_dispatch.worker.executor.protocol import Executor, Run, RunRejectedError, Stopped

__all__ = ["Executor", "Run", "RunRejectedError", "Stopped"]
