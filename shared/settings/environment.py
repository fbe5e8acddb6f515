"""Read settings from the environment: clean each value, and note each that is read differently."""

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
"""What Orcheo reads in our processes as well: from the environment, and without cleaning it."""


@dataclass(frozen=True, slots=True)
class Note:
    """A value that is read differently from how it is written; never quotes a secret."""

    variable: str
    text: str


class ValuesSource(PydanticBaseSettingsSource):
    """Values by variable; those that are empty count as unset. Raises `SettingsError` for what is no text."""

    def __init__(self, settings: type[BaseSettings], values: Mapping[str, str]) -> None:
        super().__init__(settings)
        aliases = {str(field.alias) for field in settings.model_fields.values()}
        found = {name: read(name, raw) for name, raw in _in_capitals(values).items() if name in aliases}
        self._found = {name: text for name, text in found.items() if text}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return what pydantic asks for: value, key, and that the value is no JSON."""
        return self._found.get(str(field.alias)), str(field.alias), False

    def __call__(self) -> dict[str, Any]:
        """Return the values that are settings."""
        return dict(self._found)


def notes(variables: Container[str], environment: Mapping[str, str] = os.environ) -> list[Note]:
    """Return what is read differently of these variables, one note for each change."""
    given = {name: raw for name, raw in _in_capitals(environment).items() if name in variables}
    found = [Note(name, text) for name, raw in sorted(given.items()) for text in _changes(name, raw)]
    broker = read("REDIS_URL", given.get("REDIS_URL", ""))
    if not read("ORCHEO_REDIS_URL", given.get("ORCHEO_REDIS_URL", "")) and slots_follow(broker, environment):
        text = "not set: run slots are returned at REDIS_URL, since localhost is this container; set it for the API too"
        found.append(Note("ORCHEO_REDIS_URL", text))
    return found


def slots_follow(broker: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether run slots are returned at the broker because no setting says where the API counts them.

    The API counts them on localhost then. In a container that is another host for us than for the API, unless the
    broker is on localhost too.
    """
    return bool(broker) and "://" in broker and not is_local(broker) and in_container(environment)


def export_values(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what Orcheo reads in this process as we read it: credentials that are unset, and addresses, cleaned.

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
        found.append(
            "blanks, line breaks or quotes around the value are left out; Orcheo may read them as a part of it"
        )
    if variable in _DSNS:
        found += postgres_dsn(text)[1]
    elif variable == "ORCHEO_LOG_LEVEL" and text and log_level(text) is None:
        found.append("no level of logging: INFO is used, as Orcheo does")
    elif variable == "ORCHEO_LOG_FORMAT" and text and log_format(text) is None:
        found.append("neither console nor json: json is used, as Orcheo does")
    return found


def _in_capitals(values: Mapping[str, str]) -> dict[str, str]:
    """Return the values by their names in capitals; a name that is written so comes before others."""
    written_so = {name: value for name, value in values.items() if name == name.upper()}
    return {**{name.upper(): value for name, value in values.items()}, **written_so}


OURS, ORCHEOS = "ORCHEO_CRON_INTERVAL", "ORCHEO_CRON_DISPATCH_INTERVAL"
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 86_400.0


def cron_interval_of_orcheo(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds in Orcheo's variable, within our bounds; None where it is unset or no positive number.

    Orcheo's API ignores such a value too.
    """
    try:
        seconds = float(environment.get(ORCHEOS, ""))
    except ValueError:
        return None
    if not math.isfinite(seconds) or seconds <= 0:
        return None
    return min(max(seconds, _LEAST_SECONDS), _MOST_SECONDS)


def cron_interval_note(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Return what to log of Orcheo's variable: that it is used, or that it is ignored; None where neither is news."""
    if environment.get(OURS) or not environment.get(ORCHEOS):
        return None
    seconds = cron_interval_of_orcheo(environment)
    return {"variable": ORCHEOS, "used": seconds is not None, **({} if seconds is None else {"seconds": seconds})}


class OrcheoNames(PydanticBaseSettingsSource):
    """Orcheo's names as the last source of settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return what pydantic asks for: value, key, and that the value is no JSON."""
        value = cron_interval_of_orcheo() if field.alias == OURS else None
        return value, str(field.alias), False

    def __call__(self) -> dict[str, Any]:
        """Return the settings that correspond to Orcheo's names."""
        seconds = cron_interval_of_orcheo()
        return {} if seconds is None else {OURS: seconds}
