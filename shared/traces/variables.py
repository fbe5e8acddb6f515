"""Check the variables of OpenTelemetry that its SDK reads: it would ignore an invalid value, or fail at each export."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from orcheo_dispatch.shared.errors import SettingsError

_OTLP = ("OTEL_EXPORTER_OTLP", "OTEL_EXPORTER_OTLP_TRACES")
_SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_QUEUE, _BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_DEFAULT_QUEUE, _DEFAULT_BATCH = 2048, 512
_MAX_QUEUE = 1_000_000


def sdk_is_disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `OTEL_SDK_DISABLED` switches OpenTelemetry off for all programs of this environment."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def queue_size(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many spans may wait for their export."""
    return int(environment.get(_QUEUE) or _DEFAULT_QUEUE)


def check_variables(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `SettingsError` for the first variable that is invalid; a URL is not quoted, since it may hold a secret."""
    for prefix in _OTLP:
        _check(environment, f"{prefix}_PROTOCOL", lambda text: text == "http/protobuf", "'http/protobuf'")
        _check(environment, f"{prefix}_TIMEOUT", _is_positive, "seconds above 0")
        _check(environment, f"{prefix}_COMPRESSION", {"none", "gzip", "deflate"}.__contains__, "none, gzip or deflate")
        for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            _check(environment, f"{prefix}_{file}", _is_readable, "a file that this process can read")
        if (text := environment.get(f"{prefix}_ENDPOINT")) and not _is_url(text):
            raise SettingsError(f"{prefix}_ENDPOINT has an invalid value: expected a URL such as http://collector:4318")
    _check(environment, "OTEL_TRACES_SAMPLER", lambda text: text.lower() in _SAMPLERS, ", ".join(_SAMPLERS))
    if environment.get("OTEL_TRACES_SAMPLER", "").lower().endswith("traceidratio"):
        _check(environment, "OTEL_TRACES_SAMPLER_ARG", _is_ratio, "a number from 0 to 1")
    _check(environment, "OTEL_BSP_SCHEDULE_DELAY", lambda text: _is_count(text, 86_400_000), "milliseconds above 0")
    _check(environment, _QUEUE, lambda text: _is_count(text, _MAX_QUEUE), f"a number of spans, 1 to {_MAX_QUEUE}")
    _check(environment, _BATCH, lambda text: _is_count(text, _MAX_QUEUE), f"a number of spans, 1 to {_MAX_QUEUE}")
    batch = int(environment.get(_BATCH) or _DEFAULT_BATCH)
    if batch > queue_size(environment):
        raise SettingsError.wrong(_BATCH, str(batch), f"at most {_QUEUE} ({queue_size(environment)})")


def _check(environment: Mapping[str, str], name: str, fits: Callable[[str], bool], takes: str) -> None:
    text = environment.get(name)
    if text and not fits(text):
        raise SettingsError.wrong(name, text, takes)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _is_positive(text: str) -> bool:
    return 0 < _number(text) <= 3600


def _is_ratio(text: str) -> bool:
    return 0 <= _number(text) <= 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _is_count(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= most


def _is_readable(text: str) -> bool:
    return Path(text).is_file() and os.access(text, os.R_OK)
