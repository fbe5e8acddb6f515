"""Counters, gauges and histograms of prometheus_client, in our own registry.

prometheus_client decides at import, for the whole process, where values are stored, depending on an environment
variable. Here they are always kept in memory, and metrics of other code in this process stay separate from ours.
prometheus_client has no argument for that, so its value class is replaced while a metric is created.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

OTHER = "other"
"""Label value that replaces values not known at the start, if the label allows it."""


class _Nothing:
    """A metric that discards all values."""

    def inc(self, amount: float = 1) -> None: ...
    def dec(self, amount: float = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, amount: float) -> None: ...


_NOTHING = _Nothing()


class Family:
    """One metric, with a series for each combination of label values, all created at the start.

    So a rate never misses the first event, and the number of series is bounded.
    """

    def __init__(self, metric: Any, labels: dict[str, Sequence[str]]) -> None:
        self._known = list(labels.values())
        self._series: dict[tuple[str, ...], Any] = {}
        if metric is not None:
            for values in product(*self._known):
                self._series[values] = metric.labels(*values) if values else metric

    def __call__(self, *values: str) -> Any:
        """Return the series with these label values; if there is none, one that discards all values."""
        known = (value if value in known else OTHER for value, known in zip(values, self._known, strict=True))
        return self._series.get(tuple(known), _NOTHING)

    def close(self) -> None:
        """Discard all values from now on."""
        self._series.clear()


class Instruments:
    """Creates metrics. Without `on` they discard all values, and prometheus_client is not imported."""

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._families: list[Family] = []
        if not on:
            return
        from prometheus_client import (
            CollectorRegistry,
            GCCollector,
            PlatformCollector,
            ProcessCollector,
            generate_latest,
        )

        self._write = generate_latest
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, what: str, **labels: Sequence[str]) -> Family:
        """Return a counter; its name gets `_total`."""
        return self._make("Counter", name, what, labels)

    def gauge(self, name: str, what: str, **labels: Sequence[str]) -> Family:
        """Return a gauge."""
        return self._make("Gauge", name, what, labels)

    def histogram(self, name: str, what: str, buckets: Sequence[float], **labels: Sequence[str]) -> Family:
        """Return a histogram with these upper bounds."""
        return self._make("Histogram", name, what, labels, buckets=buckets)

    def info(self, name: str, what: str, **facts: str) -> None:
        """Expose facts that do not change, as labels of a series that is 1; its name gets `_info`."""
        if self._on:
            from prometheus_client import Info

            Info(name, what, registry=self.registry).info(facts)

    def add(self, collector: Any) -> None:
        """Call `collector.collect()` at each scrape as well."""
        if self._on:
            self.registry.register(collector)

    def read(self) -> bytes:
        """Return every series in Prometheus' text format."""
        if not self._on:
            return b""
        return self._write(_WithoutCreated(self.registry))

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return the value of every series by its name and labels."""
        if not self._on:
            return {}
        found = (sample for metric in _WithoutCreated(self.registry).collect() for sample in metric.samples)
        return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}

    def close(self) -> None:
        """Discard all values from now on."""
        for family in self._families:
            family.close()

    def _make(self, kind: str, name: str, what: str, labels: dict[str, Sequence[str]], **more: Any) -> Family:
        if not self._on:
            return Family(None, labels)
        import prometheus_client

        with _values_in_memory():
            metric = getattr(prometheus_client, kind)(name, what, tuple(labels), registry=self.registry, **more)
            family = Family(metric, labels)
        self._families.append(family)
        return family


class _WithoutCreated:
    """A registry without the `_created` series, which would double the number of lines."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


@contextmanager
def _values_in_memory() -> Iterator[None]:
    from prometheus_client import values

    class_before, values.ValueClass = values.ValueClass, values.MutexValue
    try:
        yield
    finally:
        values.ValueClass = class_before
