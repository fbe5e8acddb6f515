"""What executes runs: the protocol of an executor, and what it may use.

An executor of your own imports `Run`, `RunRejectedError` and `Stopped` from here; docs/executors.md.
"""

from orcheo_dispatch.worker.executor.protocol import Executor, Run, RunRejectedError, Stopped

__all__ = ["Executor", "Run", "RunRejectedError", "Stopped"]
