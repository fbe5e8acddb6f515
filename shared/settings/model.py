"""All settings, read once at the entry point and passed on as an argument.

Each field is one environment variable (its alias), or a credential of that name. Durations are seconds.
"""

from __future__ import annotations

import os
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.credentials import read_credentials
from orcheo_dispatch.shared.settings.dispatch import (
    ALL_TRIGGERS,
    DispatchSettings,
)
from orcheo_dispatch.shared.settings.environment import OrcheoNames, ValuesSource, slots_follow
from orcheo_dispatch.shared.settings.explain import explain
from orcheo_dispatch.shared.settings.field_types import (
    LONGEST,
    AlertUrls,
    CronModeInAnyCase,
    HeaderName,
    HealthToken,
    HostNames,
    LogFormat,
    LogLevel,
    Networks,
    ServiceToken,
    TracesInAnyCase,
    show_default,
)
from orcheo_dispatch.shared.settings.policies import CronMode, Traces, cron_mode
from orcheo_dispatch.shared.settings.rules import (
    check_api,
    check_interrupted_runs,
    check_leases,
    check_page_actions,
    check_queue,
)
from orcheo_dispatch.shared.settings.values import LEVELS
from orcheo_dispatch.shared.settings.worker import WorkerSettings


class Settings(WorkerSettings, DispatchSettings):
    """The settings of all three processes. Immutable; secrets never show in `repr`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    health_host: str = Field(
        "127.0.0.1", alias="ORCHEO_HEALTH_HOST", description="Address on which /livez, /readyz and /metrics are served."
    )
    health_port: int = Field(
        0,
        alias="ORCHEO_HEALTH_PORT",
        ge=0,
        le=65_535,
        description="Port of /livez, /readyz and /metrics, different for each process; 0 disables them.",
    )
    health_token: HealthToken | None = Field(
        None,
        alias="ORCHEO_HEALTH_TOKEN",
        description="If set, /metrics and the figures of the status page require this token.",
    )

    health_allowed_hosts: HostNames = Field(
        (),
        alias="ORCHEO_HEALTH_ALLOWED_HOSTS",
        description="Host names of the status page, separated by commas, in addition to this machine's own.",
    )
    page_actions: bool = Field(
        False,
        alias="ORCHEO_PAGE_ACTIONS",
        description="Whether operators may act on the status page; requires a token or a header of the user.",
    )
    page_user_header: HeaderName | None = Field(
        None,
        alias="ORCHEO_PAGE_USER_HEADER",
        description="Header in which a reverse proxy names the user that it has authenticated; actions require it.",
    )
    page_proxies: Networks = Field(
        ("127.0.0.0/8", "::1/128"),
        alias="ORCHEO_PAGE_PROXIES",
        description="Addresses and networks, separated by commas, from which that header is accepted.",
    )
    log_level: LogLevel = Field(
        "INFO",
        alias="ORCHEO_LOG_LEVEL",
        description="Lowest level that is logged: " + ", ".join(LEVELS) + ", or a number of Python's logging.",
    )
    log_format: LogFormat = Field(
        "console",
        alias="ORCHEO_LOG_FORMAT",
        description="`console` (or `text`) for people, `json` for journald and log shippers; interpreted as by Orcheo.",
    )
    traces: TracesInAnyCase = Field(
        Traces.OFF,
        alias="ORCHEO_DISPATCH_TRACES",
        description="Whether spans of runs are exported: otlp (to OTEL_EXPORTER_OTLP_ENDPOINT) or off.",
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

    alerts_urls: AlertUrls | None = Field(
        None,
        alias="ORCHEO_ALERTS_URLS",
        description="Where alerts are sent: URLs of Apprise, separated by commas or spaces; unset: nowhere.",
    )
    alerts_link: str = Field(
        "docs/runbook.md",
        alias="ORCHEO_ALERTS_LINK",
        pattern=r"^\S{1,1000}$",
        description="URL of the runbook that messages link to, or of the documentation site if it ends with a slash.",
    )
    alerts_repeat: float = Field(
        14_400.0,
        alias="ORCHEO_ALERTS_REPEAT",
        ge=60,
        le=LONGEST,
        description="Seconds after which the message of an alert that has not ended is sent again.",
    )
    alerts_hold: float = Field(
        300.0,
        alias="ORCHEO_ALERTS_HOLD",
        ge=1,
        le=86_400,
        description="Seconds that a condition must be over before its alert counts as resolved.",
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
        """Return the sources in order of precedence: argument, environment, credential, Orcheo's own variable."""
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
        check_interrupted_runs(self.interrupted_runs, self.lost_runs)
        check_queue(self.queue)
        if self.page_actions:
            check_page_actions(token=self.health_token is not None, user_header=self.page_user_header)
        if self.cron_mode is CronMode.API:
            check_api(self.api_url)
        return self

    @property
    def cron_mode(self) -> CronMode:
        """Who creates the runs of due cron triggers, with the default applied."""
        chosen = self.cron if "cron" in self.model_fields_set else None
        return cron_mode(chosen, executor=self.executor, api_url=self.api_url)

    @property
    def takes_every_trigger(self) -> bool:
        """Whether the allow-list of triggers is `*`."""
        return ALL_TRIGGERS in self.triggers

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Return the settings from the environment; `overrides`, by field name, take precedence.

        Raises `SettingsError` with one line per invalid variable: its value and what is expected.
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
