"""The settings of connections and of dispatchers; see `shared/settings/model.py`."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from orcheo_dispatch.shared.settings.field_types import (
    LONGEST,
    MOST,
    InterruptedRunsInAnyCase,
    LostRunsInAnyCase,
    Names,
    PostgresDsn,
    RedisUrl,
    RetriesInAnyCase,
)
from orcheo_dispatch.shared.settings.policies import InterruptedRuns, LostRuns, Retries

DEFAULT_REDIS_URL = "redis://localhost:6379/0"
DEFAULT_QUEUE = "orcheo.runs"
ALL_TRIGGERS = "*"
DEFAULT_TRIGGERS = ("webhook", "cron", "listener", "manual", "manual_batch", "cli", "api", "canvas")


class DispatchSettings(BaseSettings):
    """Addresses of the database and the broker, and what is dispatched and how."""

    postgres_dsn: PostgresDsn = Field(
        alias="ORCHEO_POSTGRES_DSN", description="DSN of Orcheo's database, the same as the API's."
    )
    listen_dsn: PostgresDsn | None = Field(
        None,
        alias="ORCHEO_DISPATCH_LISTEN_DSN",
        description="DSN of the same database that bypasses a pooler, for LISTEN; unset: ORCHEO_POSTGRES_DSN.",
    )
    redis_url: RedisUrl = Field(
        SecretStr(DEFAULT_REDIS_URL),
        alias="REDIS_URL",
        description="URL of the broker, the same as that of Orcheo's Celery app.",
    )
    slots_redis_url: RedisUrl = Field(
        SecretStr(DEFAULT_REDIS_URL),
        alias="ORCHEO_REDIS_URL",
        description="URL of the Redis in which the API counts the run slots of workspaces.",
    )

    poll_interval: float = Field(
        1.0, alias="ORCHEO_DISPATCH_POLL_INTERVAL", ge=0.05, le=3600, description="Seconds between two polls."
    )
    batch_size: int = Field(
        100, alias="ORCHEO_DISPATCH_BATCH_SIZE", ge=1, le=10_000, description="Maximum number of runs claimed per poll."
    )
    max_queued: int = Field(
        200,
        alias="ORCHEO_DISPATCH_MAX_QUEUED",
        ge=1,
        le=1_000_000,
        description="Maximum number of runs that wait in Redis; the rest of the backlog stays in the database.",
    )
    max_running_per_workflow: int | None = Field(
        None,
        alias="ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKFLOW",
        ge=1,
        le=MOST,
        description="Maximum number of runs of one workflow that are claimed, queued or running; unset: no limit.",
    )
    max_running_per_workspace: int | None = Field(
        None,
        alias="ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKSPACE",
        ge=1,
        le=MOST,
        description="The same limit per workspace; runs outside a workspace are not counted.",
    )
    queue: str = Field(
        DEFAULT_QUEUE,
        alias="ORCHEO_DISPATCH_QUEUE",
        pattern=r"^[A-Za-z0-9._\-]{1,100}$",
        description="Queue in Redis that workers consume; the installation's name is appended to it.",
    )
    namespace: str | None = Field(
        None,
        alias="ORCHEO_DISPATCH_NAMESPACE",
        pattern=r"^[A-Za-z0-9._\-]{1,40}$",
        description="Name of this installation in Redis; unset: derived from the database's identity.",
    )
    triggers: Names = Field(
        DEFAULT_TRIGGERS,
        alias="ORCHEO_DISPATCH_TRIGGERS",
        min_length=1,
        description="Values of `triggered_by` whose runs are dispatched, separated by commas; `*` means all.",
    )
    lease: float = Field(
        60.0,
        alias="ORCHEO_DISPATCH_LEASE",
        ge=1,
        le=86_400,
        description="Seconds after which a claim that no worker has begun is reconciled with Redis.",
    )
    lost_runs: LostRunsInAnyCase = Field(
        LostRuns.RESUME,
        alias="ORCHEO_DISPATCH_LOST_RUNS",
        description="What happens to a run whose worker is lost: resume, requeue, fail or hold.",
    )
    max_attempts: int = Field(
        3,
        alias="ORCHEO_DISPATCH_MAX_ATTEMPTS",
        ge=1,
        le=1000,
        description="Maximum number of attempts of a run before `requeue` or `resume` fails it.",
    )
    retries: RetriesInAnyCase = Field(
        Retries.STEP,
        alias="ORCHEO_DISPATCH_RETRIES",
        description="Where a failed run starts again if its workflow has a retry policy: step, start, or off.",
    )
    interrupted_runs: InterruptedRunsInAnyCase = Field(
        InterruptedRuns.SUCCEED,
        alias="ORCHEO_DISPATCH_INTERRUPTED_RUNS",
        description="What happens to a run that stops at an interrupt: succeed, wait or wait_with_slot.",
    )
    target_delay: float = Field(
        60.0,
        alias="ORCHEO_DISPATCH_TARGET_DELAY",
        ge=1,
        le=86_400,
        description="Seconds within which pending runs shall begin: the metric of wanted workers is computed for it.",
    )
    retention: float = Field(
        604_800.0,
        alias="ORCHEO_DISPATCH_RETENTION",
        ge=60,
        le=LONGEST,
        description="Seconds that settled rows are kept in the ledger.",
    )
