"""Types of the fields of `Settings`: which values each accepts.

An error text says what is accepted, as the end of a sentence, and does not quote the value.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from orcheo_dispatch.shared.settings.addresses import check_postgres_dsn, check_redis_url
from orcheo_dispatch.shared.settings.policies import (
    CronMode,
    InterruptedRuns,
    LostRuns,
    Retries,
    Traces,
    WorkerIsolation,
    WorkerPool,
)
from orcheo_dispatch.shared.settings.values import log_format, log_level, postgres_dsn
from orcheo_dispatch.shared.text.urls import is_url, split_urls

LONGEST = 1_000_000_000
"""Maximum duration (seconds): 31 years, which every timer and every Postgres interval accepts."""
MOST = 1_000_000_000
"""Maximum number of runs; it fits Postgres' integer."""

QUEUE_NAME = r"[a-z0-9][a-z0-9_-]{0,39}"
"""A queue as policies and ORCHEO_WORKER_QUEUES name it."""
DEFAULT_QUEUE_NAME = "default"
"""The queue of runs for which no policy names one."""

_OTHER_HEADERS = frozenset({
    "authorization", "content-length", "content-type", "cookie", "host", "origin", "referer", "sec-fetch-site",
    "user-agent", "x-csrf-token", "x-forwarded-proto",
})  # fmt: skip


def _split_list(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    return value


def _check_queues(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(re.fullmatch(QUEUE_NAME, name) for name in names):
        raise ValueError("names of lowercase letters, digits, - and _, at most 40 characters each, separated by commas")
    return tuple(dict.fromkeys(names))


def _check_hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name != "*" and not re.fullmatch(r"\.?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?", name):
            raise ValueError("host names without a port, such as page.example.org or .example.org, or *")
    return names


def _check_networks(given: tuple[str, ...]) -> tuple[str, ...]:
    try:
        found = tuple(str(ipaddress.ip_network(each)) for each in given)
    except ValueError:
        found = ()
    if not found:
        raise ValueError("addresses or networks, such as 127.0.0.1 or 10.0.0.0/8")
    return found


def _check_header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,99}", name) or name.lower() in _OTHER_HEADERS:
        raise ValueError("the name of a header that only the proxy sets, such as X-Forwarded-User")
    return name


def _check_token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{16,}", value.get_secret_value()):
        raise ValueError("at least 16 ASCII characters without a space, e.g. the output of `openssl rand -hex 32`")
    return value


def _check_service_token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("a token of printable ASCII characters without a space, since it is sent in an HTTP header")
    return value


def _check_alert_urls(value: SecretStr) -> SecretStr:
    if not all(is_url(url) for url in split_urls(value.get_secret_value())):
        raise ValueError("URLs of Apprise, separated by commas or spaces, such as json://host/path")
    return value


def _check_dsn(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    # In a DSN of the form `host=... port=...` spaces are separators; elsewhere they are a copying mistake.
    _refuse_unprintable(text, blanks="://" not in text)
    return check_postgres_dsn(SecretStr(postgres_dsn(text)[0]))


def _check_url(value: SecretStr) -> SecretStr:
    _refuse_unprintable(value.get_secret_value(), blanks=False)
    return check_redis_url(value)


def _refuse_unprintable(text: str, *, blanks: bool) -> None:
    """Reject characters that a client would silently drop from an address, or print unescaped."""
    if any(not (character.isprintable() or (blanks and character.isspace())) for character in text):
        raise ValueError("an address without line breaks and unprintable characters")
    if not blanks and any(character.isspace() for character in text):
        raise ValueError("an address without spaces")


def _lowered(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _log_level(value: Any) -> Any:
    return log_level(str(value)) or "INFO"


def _log_format(value: Any) -> Any:
    return log_format(str(value)) or "json"


QueueNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_check_queues)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
"""Separated by commas."""
PostgresDsn = Annotated[SecretStr, AfterValidator(_check_dsn)]
RedisUrl = Annotated[SecretStr, AfterValidator(_check_url)]
HostNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_check_hosts)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_check_networks)]
HeaderName = Annotated[str, AfterValidator(_check_header)]
HealthToken = Annotated[SecretStr, AfterValidator(_check_token)]
ServiceToken = Annotated[SecretStr, AfterValidator(_check_service_token)]
AlertUrls = Annotated[SecretStr, AfterValidator(_check_alert_urls)]
CronModeInAnyCase = Annotated[CronMode, BeforeValidator(_lowered)]
LostRunsInAnyCase = Annotated[LostRuns, BeforeValidator(_lowered)]
RetriesInAnyCase = Annotated[Retries, BeforeValidator(_lowered)]
InterruptedRunsInAnyCase = Annotated[InterruptedRuns, BeforeValidator(_lowered)]
TracesInAnyCase = Annotated[Traces, BeforeValidator(_lowered)]
WorkerIsolationInAnyCase = Annotated[WorkerIsolation, BeforeValidator(_lowered)]
WorkerPoolInAnyCase = Annotated[WorkerPool, BeforeValidator(_lowered)]
LogLevel = Annotated[
    Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_log_level),
]
LogFormat = Annotated[Literal["console", "json"], BeforeValidator(_log_format)]


def show_default(value: Any) -> str:
    """Return a default in the form used in the documentation."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value) or "unset"
    if isinstance(value, float):
        return f"{value:g}" if value < 1e6 else str(int(value))
    if value is None:
        return "unset"
    return "required" if repr(value) == "PydanticUndefined" else str(value)
