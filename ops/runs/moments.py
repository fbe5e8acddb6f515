"""Parse and print points in time as people write them: `2h`, `3 min ago`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from orcheo_dispatch.shared.errors import SettingsError

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(?P<count>\d{1,9}(?:\.\d{1,3})?)\s*(?P<unit>s|min|m|h|d|w)")
_MAX_SECONDS = 100 * 365 * 86_400
_SPANS = "a span such as 90s, 15m, 2h, 3d or 1w"
_TAKES = "a span such as 90s, 15m, 2h, 3d or 1w, or a time such as 2026-11-23T12:00 (UTC unless it says otherwise)"


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: this many seconds before the database's now, or a time of its own; or none."""

    seconds_ago: float | None = None
    at: datetime | None = None


ANY_TIME = Moment()


def parse_moment(option: str, text: str) -> Moment:
    """Return the moment that `text`, the value of `option`, stands for. Raises `SettingsError`."""
    if span := _SPAN.fullmatch(text.strip().lower()):
        seconds = float(span["count"]) * _UNITS[span["unit"]]
        if seconds <= _MAX_SECONDS:
            return Moment(seconds_ago=seconds)
        raise SettingsError.wrong(option, text, "a span of a hundred years at most")
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise SettingsError.wrong(option, text, _TAKES) from None
    return Moment(at=at if at.tzinfo else at.replace(tzinfo=UTC))


def parse_span(option: str, text: str) -> float:
    """Return the seconds that `text`, the value of `option`, stands for: above 0. Raises `SettingsError`."""
    span = _SPAN.fullmatch(text.strip().lower())
    seconds = float(span["count"]) * _UNITS[span["unit"]] if span else 0.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise SettingsError.wrong(option, text, f"{_SPANS}, above 0 and a hundred years at most")
    return seconds


def duration(value: float | None) -> str:
    """Return a duration in seconds as a person reads it, to the accuracy that matters."""
    if value is None:
        return "-"
    if value < 0:
        return f"-{duration(-value)}"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    if value < 86_400:
        return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    return f"{value // 86_400:.0f} d {value % 86_400 // 3600:.0f} h"


def ago(value: float | None) -> str:
    """Return an age in seconds in one unit: `just now`, `3 min ago`."""
    if value is None:
        return "-"
    if value < 1:
        return "just now"
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if value >= seconds:
            return f"{value // seconds:.0f} {unit} ago"
    return f"{value:.0f} s ago"
