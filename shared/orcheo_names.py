"""Settings that Orcheo has under a name of its own: used where ours is not set, so that one environment serves both."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

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
        """Return the settings that Orcheo's names stand for."""
        seconds = cron_interval_of_orcheo()
        return {} if seconds is None else {OURS: seconds}
