"""Read settings from the environment: clean each value, and note those whose interpretation differs."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from orcheo_dispatch.shared.settings.credentials import export_credentials
from orcheo_dispatch.shared.settings.surroundings import in_container, is_local
from orcheo_dispatch.shared.settings.values import log_format, log_level, postgres_dsn, read

_DSNS = frozenset({"ORCHEO_POSTGRES_DSN", "ORCHEO_DISPATCH_LISTEN_DSN"})
_READ_BY_ORCHEO = ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL")
"""Variables that Orcheo also reads in our processes, from the environment and without cleaning them."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note that a value is interpreted differently from how it is written; never quotes a secret."""

    variable: str
    text: str


class ValuesSource(PydanticBaseSettingsSource):
    """Values by variable; empty ones count as unset. Raises `SettingsError` for a value that is not text."""

    def __init__(self, settings: type[BaseSettings], values: Mapping[str, str]) -> None:
        super().__init__(settings)
        aliases = {str(field.alias) for field in settings.model_fields.values()}
        found = {name: read(name, raw) for name, raw in _in_capitals(values).items() if name in aliases}
        self._found = {name: text for name, text in found.items() if text}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value, the key, and False, since the value is not JSON, as pydantic requires."""
        return self._found.get(str(field.alias)), str(field.alias), False

    def __call__(self) -> dict[str, Any]:
        """Return the values of settings."""
        return dict(self._found)


def notes(variables: Container[str], environment: Mapping[str, str] = os.environ) -> list[Note]:
    """Return a note for each change made when these variables are read."""
    given = {name: raw for name, raw in _in_capitals(environment).items() if name in variables}
    found = [Note(name, text) for name, raw in sorted(given.items()) for text in _changes(name, raw)]
    broker = read("REDIS_URL", given.get("REDIS_URL", ""))
    if not read("ORCHEO_REDIS_URL", given.get("ORCHEO_REDIS_URL", "")) and slots_follow(broker, environment):
        text = "not set: run slots are returned at REDIS_URL, since localhost is this container; set it for the API too"
        found.append(Note("ORCHEO_REDIS_URL", text))
    return found


def slots_follow(broker: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether run slots are returned at the broker because no setting says where the API counts them.

    The API then counts them on localhost. In a container, our localhost is not the API's, unless the broker is on
    localhost too.
    """
    return bool(broker) and "://" in broker and not is_local(broker) and in_container(environment)


def export_values(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that Orcheo reads in this process to our values: unset credentials and cleaned addresses.

    Raises `SettingsError` as `read_credentials` does.
    """
    export_credentials(environment)
    for name in _READ_BY_ORCHEO:
        if raw := environment.get(name):
            text = read(name, raw)
            environment[name] = postgres_dsn(text)[0] if name in _DSNS else text


def _changes(variable: str, raw: str) -> list[str]:
    text = read(variable, raw)
    found = []
    if text != raw and text:
        found.append("surrounding spaces, line breaks or quotes are removed; Orcheo may read them as part of the value")
    if variable in _DSNS:
        found += postgres_dsn(text)[1]
    elif variable == "ORCHEO_LOG_LEVEL" and text and log_level(text) is None:
        found.append("not a log level: INFO is used, as Orcheo does")
    elif variable == "ORCHEO_LOG_FORMAT" and text and log_format(text) is None:
        found.append("neither console nor json: json is used, as Orcheo does")
    return found


def _in_capitals(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values by upper-case name; a name that is written in upper case takes precedence."""
    written_so = {name: value for name, value in values.items() if name == name.upper()}
    return {**{name.upper(): value for name, value in values.items()}, **written_so}


OURS, ORCHEOS = "ORCHEO_CRON_INTERVAL", "ORCHEO_CRON_DISPATCH_INTERVAL"
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 86_400.0


def cron_interval_of_orcheo(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return Orcheo's interval (seconds), limited to our range; None if it is unset or not a positive number.

    Orcheo's API ignores an invalid value as well.
    """
    try:
        seconds = float(environment.get(ORCHEOS, ""))
    except ValueError:
        return None
    if not math.isfinite(seconds) or seconds <= 0:
        return None
    return min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)


def cron_interval_note(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Return what to log about Orcheo's variable: whether it is used or ignored; None if it is unset or overridden."""
    if environment.get(OURS) or not environment.get(ORCHEOS):
        return None
    seconds = cron_interval_of_orcheo(environment)
    return {"variable": ORCHEOS, "used": seconds is not None, **({} if seconds is None else {"seconds": seconds})}


class OrcheoNames(PydanticBaseSettingsSource):
    """Orcheo's own variables, as the last source of settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value, the key, and False, since the value is not JSON, as pydantic requires."""
        value = cron_interval_of_orcheo() if field.alias == OURS else None
        return value, str(field.alias), False

    def __call__(self) -> dict[str, Any]:
        """Return the settings that correspond to Orcheo's variables."""
        seconds = cron_interval_of_orcheo()
        return {} if seconds is None else {OURS: seconds}
