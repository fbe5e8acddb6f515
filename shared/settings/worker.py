"""The settings of workers; see `shared/settings/model.py`."""

from __future__ import annotations

import os

from pydantic import Field
from pydantic_settings import BaseSettings

from orcheo_dispatch.shared.settings.field_types import (
    DEFAULT_QUEUE_NAME,
    LONGEST,
    MOST,
    QueueNames,
    WorkerIsolationInAnyCase,
    WorkerPoolInAnyCase,
)
from orcheo_dispatch.shared.settings.policies import WorkerIsolation


class WorkerSettings(BaseSettings):
    """How many runs a worker executes, in which processes, and for how long."""

    concurrency: int = Field(
        32,
        alias="ORCHEO_WORKER_CONCURRENCY",
        ge=1,
        le=10_000,
        description="Maximum number of runs that a worker executes at a time.",
    )
    queues: QueueNames = Field(
        (DEFAULT_QUEUE_NAME,),
        alias="ORCHEO_WORKER_QUEUES",
        description="Named queues whose runs this worker executes, separated by commas; see `policy set --queue`.",
    )
    isolation: WorkerIsolationInAnyCase = Field(
        WorkerIsolation.ADAPTIVE,
        alias="ORCHEO_WORKER_ISOLATION",
        description="Runs with their own process: adaptive (those that harm others), process (all), shared (suspects).",
    )
    processes: int | None = Field(
        None,
        alias="ORCHEO_WORKER_PROCESSES",
        ge=1,
        le=1000,
        description="Processes that share the runs of one workspace; unset: one per core that the worker may use.",
    )
    max_processes: int = Field(
        32,
        alias="ORCHEO_WORKER_MAX_PROCESSES",
        ge=2,
        le=10_000,
        description="Maximum number of processes that execute runs; further workspaces take turns.",
    )
    max_runs_per_process: int = Field(
        10_000,
        alias="ORCHEO_WORKER_MAX_RUNS_PER_PROCESS",
        ge=1,
        le=MOST,
        description="Runs after which a shared process is replaced.",
    )
    max_process_age: float = Field(
        86_400.0,
        alias="ORCHEO_WORKER_MAX_PROCESS_AGE",
        ge=1,
        le=LONGEST,
        description="Seconds after which a shared process is replaced.",
    )
    max_memory: int = Field(
        2048,
        alias="ORCHEO_WORKER_MAX_MEMORY",
        ge=0,
        le=MOST,
        description="MiB by which a process may grow before it is killed; replaced from half of it on. 0: no limit.",
    )
    max_output: int = Field(
        67_108_864,
        alias="ORCHEO_WORKER_MAX_OUTPUT",
        ge=1024,
        le=268_435_456,
        description="Maximum size of a run's output as JSON (bytes); a run with a larger output fails.",
    )
    pool: WorkerPoolInAnyCase | None = Field(
        None,
        alias="ORCHEO_WORKER_POOL",
        description="Deprecated: `prefork` means ORCHEO_WORKER_ISOLATION=process, `threads` has no effect.",
    )
    heartbeat: float = Field(
        5.0, alias="ORCHEO_WORKER_HEARTBEAT", ge=0.1, le=600, description="Seconds between two heartbeats of a worker."
    )
    worker_lease: float = Field(
        30.0,
        alias="ORCHEO_WORKER_LEASE",
        ge=0.5,
        le=3600,
        description="Seconds without a heartbeat after which a running run counts as lost.",
    )
    run_timeout: float = Field(
        3600.0,
        alias="ORCHEO_WORKER_RUN_TIMEOUT",
        gt=0,
        le=LONGEST,
        description="Maximum duration of a run (seconds).",
    )
    cancel_grace: float = Field(
        5.0,
        alias="ORCHEO_WORKER_CANCEL_GRACE",
        ge=0,
        le=600,
        description="Seconds that a cancelled run has for its clean-up code.",
    )
    drain_timeout: float = Field(
        60.0,
        alias="ORCHEO_WORKER_DRAIN_TIMEOUT",
        ge=0,
        le=LONGEST,
        description="Seconds that a stopping worker waits for its runs to finish.",
    )
    executor: str = Field(
        "orcheo",
        alias="ORCHEO_WORKER_EXECUTOR",
        description="Executor of runs: `orcheo`, or `package.module:name` (see `worker/executor/protocol.py`).",
    )

    @property
    def capacity(self) -> int:
        """Maximum number of runs that a worker executes at a time: the number of processes if each run needs its own.

        A run that has begun but waits for a process would use up its timeout and delay the runs behind it.
        """
        if self.isolation is WorkerIsolation.PROCESS:
            return min(self.concurrency, self.max_processes)
        return self.concurrency

    @property
    def shared_processes(self) -> int:
        """How many processes share the runs of one workspace."""
        return self.processes or len(os.sched_getaffinity(0))
