"""Parse the fields of a policy as operators write them; `none` takes a field back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from orcheo_dispatch.ops.runs.moments import parse_span
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.policies import LostRuns, Retries, WorkerIsolation

NONE = "none"
_MOST = 1_000_000_000
_MOST_SECONDS = 604_800
_LONGEST_TIMEOUT = 31_536_000
_QUEUE = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def parse_fields(given: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the columns to set; `given` has the value of each option without its dashes, None if it was not given.

    Raises `SettingsError` naming the option.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            option = "--" + name
            taken = value.strip()
            found |= dict.fromkeys(_COLUMNS[name]) if taken.lower() == NONE else _PARSERS[name](option, taken)
    return found


def _whole(column: str, least: int, most: int) -> Callable[[str, str], dict[str, Any]]:
    def parse(option: str, text: str) -> dict[str, Any]:
        if not re.fullmatch(r"[+-]?\d{1,10}", text, re.ASCII) or not least <= int(text) <= most:
            raise SettingsError.wrong(option, text, f"an integer from {least} to {most}, or {NONE}")
        return {column: int(text)}

    return parse


def _rate(option: str, text: str) -> dict[str, Any]:
    runs, slash, period = text.partition("/")
    wrong = SettingsError.wrong(option, text, f"runs and a period of 1s to 7d, such as 100/1m, or {NONE}")
    if not slash or not re.fullmatch(r"\d{1,10}", runs.strip(), re.ASCII) or not 1 <= int(runs) <= _MOST:
        raise wrong
    try:
        seconds = parse_span(option, period if period.strip()[:1].isdigit() else f"1{period.strip()}")
    except SettingsError:
        raise wrong from None
    if seconds != int(seconds) or not 1 <= seconds <= _MOST_SECONDS:
        raise wrong
    return {"rate_runs": int(runs), "rate_seconds": int(seconds)}


def _queue(option: str, text: str) -> dict[str, Any]:
    if not _QUEUE.fullmatch(text):
        raise SettingsError.wrong(
            option, text, f"up to 40 lower-case letters, digits, - and _, beginning with a letter or digit, or {NONE}"
        )
    return {"queue": text}


def _timeout(option: str, text: str) -> dict[str, Any]:
    seconds = parse_span(option, text)
    if seconds > _LONGEST_TIMEOUT:
        raise SettingsError.wrong(option, text, f"a span of at most 365d, or {NONE}")
    return {"timeout_seconds": seconds}


def _one_of(column: str, values: type[LostRuns | Retries | WorkerIsolation]) -> Callable[[str, str], dict[str, Any]]:
    def parse(option: str, text: str) -> dict[str, Any]:
        names = [each.value for each in values]
        if text.lower() not in names:
            raise SettingsError.wrong(option, text, f"one of {', '.join(names)}, or {NONE}")
        return {column: text.lower()}

    return parse


_PARSERS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "priority": _whole("priority", -5, 5),
    "max-running": _whole("max_running", 1, _MOST),
    "rate": _rate,
    "queue": _queue,
    "timeout": _timeout,
    "lost-runs": _one_of("lost_runs", LostRuns),
    "retries": _one_of("retries", Retries),
    "isolation": _one_of("isolation", WorkerIsolation),
}
_COLUMNS = {
    "priority": ("priority",),
    "max-running": ("max_running",),
    "rate": ("rate_runs", "rate_seconds"),
    "queue": ("queue",),
    "timeout": ("timeout_seconds",),
    "lost-runs": ("lost_runs",),
    "retries": ("retries",),
    "isolation": ("isolation",),
}
