"""Switch traces on or off, as the settings say. Imports nothing of OpenTelemetry if they are off."""

from __future__ import annotations

from uuid import UUID

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.metrics.model import ConsumerMetrics
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import Traces
from orcheo_dispatch.shared.traces.sink import SpanSink
from orcheo_dispatch.shared.traces.variables import check_variables, sdk_is_disabled


def make_sink(settings: Settings, service: str, instance: UUID, metrics: ConsumerMetrics) -> SpanSink | None:
    """Return what exports spans, or None if they are not exported.

    Raises `SettingsError` if a variable of OpenTelemetry is invalid, or if its packages are not installed.
    """
    if settings.traces is Traces.OFF:
        return None
    if sdk_is_disabled():
        return None
    check_variables()
    try:
        from orcheo_dispatch.shared.traces.export import Exporting
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SettingsError.wrong(
            "ORCHEO_DISPATCH_TRACES", settings.traces.value, "'off' unless orcheo-dispatch[traces] is installed"
        ) from None
    return Exporting(service, instance, metrics)
