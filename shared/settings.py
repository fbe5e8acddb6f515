"""Every setting, read once at the entry point and passed on as an argument.

Each field is one environment variable (its alias), or a credential of that name. Durations are seconds.
"""

from __future__ import annotations

import os
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.credentials import read_credentials
from shared.cron_mode import CronMode, cron_mode
from shared.environment import ValuesSource, slots_follow
from shared.errors import SettingsError
from shared.orcheo_names import OrcheoNames
from shared.policies import LostRuns, WorkerIsolation, WorkerPool
from shared.setting_errors import explain
from shared.setting_rules import check_api, check_leases, check_queue
from shared.setting_types import (
    LONGEST,
    MOST,
    CronModeInAnyCase,
    HealthToken,
    HostNames,
    LogFormat,
    LogLevel,
    LostRunsInAnyCase,
    Names,
    PostgresDsn,
    RedisUrl,
    ServiceToken,
    WorkerIsolationInAnyCase,
    WorkerPoolInAnyCase,
    show_default,
)
from shared.values import LEVELS

# fmt: off
__all__ = ["ALL_TRIGGERS", "CronMode", "DEFAULT_QUEUE", "DEFAULT_REDIS_URL", "DEFAULT_TRIGGERS", "LostRuns", "RedisUrl",
           "Settings", "WorkerIsolation", "WorkerPool", "secret_variables", "variables"]
# fmt: on


DEFAULT_REDIS_URL = "redis://localhost:6379/0"
DEFAULT_QUEUE = "orcheo.runs"
ALL_TRIGGERS = "*"
DEFAULT_TRIGGERS = ("webhook", "cron", "listener", "manual", "manual_batch", "cli", "api", "canvas")


class Settings(BaseSettings):
    """The settings of all three processes. Immutable; secrets never show in `repr`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    postgres_dsn: PostgresDsn = Field(
        alias="ORCHEO_POSTGRES_DSN", description="Orcheo's database, as the API names it."
    )
    listen_dsn: PostgresDsn | None = Field(
        None,
        alias="ORCHEO_DISPATCH_LISTEN_DSN",
        description="The same database without a pooler between, for LISTEN; unset: ORCHEO_POSTGRES_DSN.",
    )
    redis_url: RedisUrl = Field(
        SecretStr(DEFAULT_REDIS_URL), alias="REDIS_URL", description="The broker, as Orcheo's Celery app names it."
    )
    slots_redis_url: RedisUrl = Field(
        SecretStr(DEFAULT_REDIS_URL),
        alias="ORCHEO_REDIS_URL",
        description="The Redis in which the API counts the run slots of a workspace.",
    )

    poll_interval: float = Field(
        1.0, alias="ORCHEO_DISPATCH_POLL_INTERVAL", ge=0.05, le=3600, description="Seconds between two polls."
    )
    batch_size: int = Field(
        100, alias="ORCHEO_DISPATCH_BATCH_SIZE", ge=1, le=10_000, description="Runs claimed by one poll at most."
    )
    max_queued: int = Field(
        200,
        alias="ORCHEO_DISPATCH_MAX_QUEUED",
        ge=1,
        le=1_000_000,
        description="Runs that may wait in Redis at a time; the rest of the backlog stays in the database.",
    )
    max_running_per_workflow: int | None = Field(
        None,
        alias="ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKFLOW",
        ge=1,
        le=MOST,
        description="Runs of one workflow that may be claimed, queued or running at a time; unset is no limit.",
    )
    max_running_per_workspace: int | None = Field(
        None,
        alias="ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKSPACE",
        ge=1,
        le=MOST,
        description="The same of one workspace; runs outside a workspace are not counted.",
    )
    queue: str = Field(
        DEFAULT_QUEUE,
        alias="ORCHEO_DISPATCH_QUEUE",
        pattern=r"^[A-Za-z0-9._\-]{1,100}$",
        description="The queue in Redis that workers take runs from; the installation's name follows it there.",
    )
    namespace: str | None = Field(
        None,
        alias="ORCHEO_DISPATCH_NAMESPACE",
        pattern=r"^[A-Za-z0-9._\-]{1,40}$",
        description="Name of this installation in Redis; unset: one made of the database's own identity.",
    )
    triggers: Names = Field(
        DEFAULT_TRIGGERS,
        alias="ORCHEO_DISPATCH_TRIGGERS",
        min_length=1,
        description="Runs with these `triggered_by` are dispatched, separated by commas; `*` is all.",
    )
    lease: float = Field(
        60.0,
        alias="ORCHEO_DISPATCH_LEASE",
        ge=1,
        le=86_400,
        description="Seconds that a claim or a published message may stay unanswered before it is looked into.",
    )
    lost_runs: LostRunsInAnyCase = Field(
        LostRuns.FAIL,
        alias="ORCHEO_DISPATCH_LOST_RUNS",
        description="What becomes of a run whose worker is lost: fail, requeue or hold.",
    )
    max_attempts: int = Field(
        3,
        alias="ORCHEO_DISPATCH_MAX_ATTEMPTS",
        ge=1,
        le=1000,
        description="Times that a run may begin before `requeue` gives it up.",
    )
    retention: float = Field(
        604_800.0,
        alias="ORCHEO_DISPATCH_RETENTION",
        ge=60,
        le=LONGEST,
        description="Seconds that settled rows stay in the ledger.",
    )

    concurrency: int = Field(
        32, alias="ORCHEO_WORKER_CONCURRENCY", ge=1, le=10_000, description="Runs that one worker executes at a time."
    )
    isolation: WorkerIsolationInAnyCase = Field(
        WorkerIsolation.ADAPTIVE,
        alias="ORCHEO_WORKER_ISOLATION",
        description="Runs that get a process each: adaptive (of workflows that harm others), process (all), shared.",
    )
    processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        alias="ORCHEO_WORKER_PROCESSES",
        ge=1,
        le=1000,
        description="Processes that share the runs of one workspace; unset: as many as there are cores.",
    )
    max_processes: int = Field(
        32,
        alias="ORCHEO_WORKER_MAX_PROCESSES",
        ge=2,
        le=10_000,
        description="Processes that execute runs at a time; workspaces beyond that take turns.",
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
        description="MiB that a process may grow by before it is ended; replaced from half of it on. 0: no limit.",
    )
    max_output: int = Field(
        67_108_864,
        alias="ORCHEO_WORKER_MAX_OUTPUT",
        ge=1024,
        le=268_435_456,
        description="Bytes that the output of a run may have as JSON; a run with more fails.",
    )
    pool: WorkerPoolInAnyCase | None = Field(
        None,
        alias="ORCHEO_WORKER_POOL",
        description="Of earlier releases: `prefork` is ORCHEO_WORKER_ISOLATION=process now, `threads` has no effect.",
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
        description="Seconds that one run may take.",
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
        description="Seconds that a stopping worker lets its runs finish.",
    )
    executor: str = Field(
        "orcheo",
        alias="ORCHEO_WORKER_EXECUTOR",
        description="What executes a run: `orcheo`, or `package.module:name` (see `worker/executor.py`).",
    )

    health_host: str = Field(
        "127.0.0.1", alias="ORCHEO_HEALTH_HOST", description="Address that /livez, /readyz and /metrics are served on."
    )
    health_port: int = Field(
        0,
        alias="ORCHEO_HEALTH_PORT",
        ge=0,
        le=65_535,
        description="Their port, one of its own for each process; 0 serves none of them.",
    )
    health_token: HealthToken | None = Field(
        None,
        alias="ORCHEO_HEALTH_TOKEN",
        description="Where set, all but /livez and /readyz asks for it: the status page, its figures, and /metrics.",
    )

    health_allowed_hosts: HostNames = Field(
        (),
        alias="ORCHEO_HEALTH_ALLOWED_HOSTS",
        description="Names, separated by commas, that the status page answers to beside this machine's own.",
    )
    log_level: LogLevel = Field(
        "INFO",
        alias="ORCHEO_LOG_LEVEL",
        description="The least severe level that is logged: "
        + ", ".join(LEVELS)
        + ", or a number of Python's logging.",
    )
    log_format: LogFormat = Field(
        "console",
        alias="ORCHEO_LOG_FORMAT",
        description="`console` (or `text`) for people, `json` for journald and log shippers; as Orcheo reads it.",
    )

    cron: CronModeInAnyCase = Field(
        CronMode.WORKER,
        alias="ORCHEO_DISPATCH_CRON",
        description="Who creates the runs of due cron triggers: worker, api (through ORCHEO_API_URL) or off.",
    )
    cron_interval: float = Field(
        60.0, alias="ORCHEO_CRON_INTERVAL", ge=1, le=LONGEST, description="Seconds between two cron dispatches."
    )
    api_url: str | None = Field(None, alias="ORCHEO_API_URL", description="Orcheo's API, for ORCHEO_DISPATCH_CRON=api.")
    service_token: ServiceToken | None = Field(
        None, alias="ORCHEO_SERVICE_TOKEN", description="Bearer token for that API."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from; the first wins: argument, environment, credential, a name of Orcheo's."""
        environment, credentials = (ValuesSource(settings_cls, found) for found in (os.environ, read_credentials()))
        return init_settings, environment, credentials, OrcheoNames(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _slots_follow_the_broker(cls, given: Any) -> Any:
        named = isinstance(given, dict) and not {"ORCHEO_REDIS_URL", "slots_redis_url"} & given.keys()
        broker = given.get("redis_url", given.get("REDIS_URL")) if named else None
        return {**given, "ORCHEO_REDIS_URL": broker} if isinstance(broker, str) and slots_follow(broker) else given

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        check_leases(worker_lease=self.worker_lease, heartbeat=self.heartbeat)
        check_queue(self.queue)
        if self.cron_mode is CronMode.API:
            check_api(self.api_url)
        return self

    @property
    def cron_mode(self) -> CronMode:
        """Who creates the runs of due cron triggers, also where nobody has chosen."""
        chosen = self.cron if "cron" in self.model_fields_set else None
        return cron_mode(chosen, executor=self.executor, api_url=self.api_url)

    @property
    def takes_every_trigger(self) -> bool:
        """Whether the allow-list of triggers is `*`."""
        return ALL_TRIGGERS in self.triggers

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Return the settings of the environment, with `overrides` by field name on top.

        Raises `SettingsError`, one line a wrong variable: what it got and what it takes.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            lines = [explain(item, cls.model_fields, secret_variables()) for item in error.errors(include_url=False)]
            raise SettingsError("\n".join(lines)) from None


def variables() -> dict[str, tuple[str, str]]:
    """Return each variable with its default (as text) and its description, in the order of the class."""
    found: dict[str, tuple[str, str]] = {}
    for field in Settings.model_fields.values():
        found[str(field.alias)] = (show_default(field.get_default()), field.description or "")
    return found


def secret_variables() -> list[str]:
    """Return the variables whose values are secrets, in the order of the class."""
    return [str(field.alias) for field in Settings.model_fields.values() if "SecretStr" in str(field.annotation)]
