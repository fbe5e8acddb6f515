"""Counters, gauges and histograms of prometheus_client, in a registry of our own: of one process, or with its children.

prometheus_client decides at its import, by an environment variable, where values live, and for all of a process.
Here each `Instruments` decides for itself: the metrics of a workflow's own code stay apart from ours.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

OTHER = "other"
"""Stands for a value of a label that was not known at the start, where the label allows for it."""
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_BURIED = "buried"


class _Nothing:
    """Takes what every metric takes, and keeps nothing."""

    def inc(self, amount: float = 1) -> None: ...
    def dec(self, amount: float = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, amount: float) -> None: ...


_NOTHING = _Nothing()


class Family:
    """One metric: a series for each combination of its labels' values, all made at the start.

    So a rate never misses the first event, no label can grow without bound, and, where values are in mapped
    files, no later write needs new room on a disk that may be full.
    """

    def __init__(self, metric: Any, labels: dict[str, Sequence[str]]) -> None:
        self._known = list(labels.values())
        self._series: dict[tuple[str, ...], Any] = {}
        if metric is not None:
            for values in product(*self._known):
                self._series[values] = metric.labels(*values) if values else metric

    def __call__(self, *values: str) -> Any:
        """Return the series with these values; one that takes all and keeps nothing where there is none."""
        known = (value if value in known else OTHER for value, known in zip(values, self._known, strict=True))
        return self._series.get(tuple(known), _NOTHING)

    def close(self) -> None:
        """Keep nothing from now on."""
        self._series.clear()


class Instruments:
    """Makes metrics. Without `on` they keep nothing, and prometheus_client is not even imported."""

    def __init__(self, *, on: bool, shared: SharedFiles | None = None) -> None:
        self._on = on
        self._shared = shared
        self._families: list[Family] = []
        if not on:
            return
        from prometheus_client import (
            CollectorRegistry,
            GCCollector,
            PlatformCollector,
            ProcessCollector,
            generate_latest,
            values,
        )

        self._write = generate_latest
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        if shared is None:
            self._value_class: Any = values.MutexValue
        else:
            self.registry.register(shared)
            # Told always the same: a fork that we do not know of must not make it open files of its own.
            identifier = str(os.getpid())
            self._value_class = values.MultiProcessValue(lambda: identifier)

    def counter(self, name: str, what: str, **labels: Sequence[str]) -> Family:
        """Return a counter; its name gets `_total`."""
        return self._make("Counter", name, what, labels)

    def gauge(self, name: str, what: str, *, across: str = "livesum", **labels: Sequence[str]) -> Family:
        """Return a gauge; `across` says what several living processes make together: `livesum`, `livemax`."""
        return self._make("Gauge", name, what, labels, multiprocess_mode=across)

    def histogram(self, name: str, what: str, buckets: Sequence[float], **labels: Sequence[str]) -> Family:
        """Return a histogram with these upper bounds."""
        return self._make("Histogram", name, what, labels, buckets=buckets)

    def info(self, name: str, what: str, **facts: str) -> None:
        """Expose facts that do not change, as labels of a series that is 1; its name gets `_info`."""
        if self._on:
            from prometheus_client import Info

            Info(name, what, registry=self.registry).info(facts)

    def add(self, collector: Any) -> None:
        """Have `collector.collect()` asked at each reading as well."""
        if self._on:
            self.registry.register(collector)

    def read(self) -> bytes:
        """Return every series in Prometheus' text format."""
        if not self._on:
            return b""
        return self._write(_WithoutCreated(self.registry))

    def close(self) -> None:
        """Keep nothing from now on, and close the files of this process, if its values are in files."""
        for family in self._families:
            family.close()
        if self._shared is not None and self._on:
            self._value_class.close_all_files()

    def _make(self, kind: str, name: str, what: str, labels: dict[str, Sequence[str]], **more: Any) -> Family:
        if not self._on:
            return Family(None, labels)
        import prometheus_client

        # What is in shared files is read from the files, the values of this process among them.
        registry = self.registry if self._shared is None else None
        with self._values_are_ours():
            metric = getattr(prometheus_client, kind)(name, what, tuple(labels), registry=registry, **more)
            family = Family(metric, labels)
        self._families.append(family)
        return family

    @contextmanager
    def _values_are_ours(self) -> Iterator[None]:
        from prometheus_client import values

        class_before, directory_before = values.ValueClass, os.environ.get(_VARIABLE)
        values.ValueClass = self._value_class
        if self._shared is not None:
            os.environ[_VARIABLE] = str(self._shared.path)
        try:
            yield
        finally:
            values.ValueClass = class_before
            os.environ.pop(_VARIABLE, None)
            if directory_before is not None:
                os.environ[_VARIABLE] = directory_before


class SharedFiles:
    """The values of a process and its children: a mapped file each in a directory of the parent.

    Made by the parent before it forks. A child that was killed leaves its files behind; the parent adds what they
    counted to one of the dead, and forgets what they gauged. The directory goes with the parent.
    """

    def __init__(self) -> None:
        # Here rather than where they are used: a thread that imports while the process forks can stop the child.
        from prometheus_client.mmap_dict import MmapedDict
        from prometheus_client.multiprocess import MultiProcessCollector

        self._mapped: Any = MmapedDict
        self._collector: Any = MultiProcessCollector
        self.path = Path(tempfile.mkdtemp(prefix="orcheo-dispatch-metrics-"))
        self._parent = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.remove)

    def collect(self) -> Any:
        """Return what all of them counted together, as prometheus_client collects it."""
        with self._lock:
            for pid in {_pid_of(path) for path in self.path.glob("*.db")} - {None}:
                if not _is_child(pid, self._parent):
                    self._bury(pid)
            # A child that has just made its file has not written to it yet.
            files = [str(path) for path in self.path.glob("*.db") if path.stat().st_size]
            return self._collector.merge(files, accumulate=True)

    def remove(self) -> None:
        """Remove the directory; in a child, do nothing."""
        if os.getpid() == self._parent:
            atexit.unregister(self.remove)
            shutil.rmtree(self.path, ignore_errors=True)

    def _bury(self, pid: str | None) -> None:
        for path in self.path.glob(f"*_{pid}.db"):
            kind = path.name.partition("_")[0]
            if kind != "gauge":
                grave = self._mapped(str(self.path / f"{kind}_{_BURIED}.db"))
                for key, value, _, _ in self._mapped.read_all_values_from_file(str(path)):
                    grave.write_value(key, grave.read_value(key)[0] + value, 0.0)
                grave.close()
            path.unlink()


class _WithoutCreated:
    """A registry less the times at which its series were made: twice the lines, for nobody to read."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _pid_of(path: Path) -> str | None:
    pid = path.stem.rpartition("_")[2]
    return pid if pid.isdecimal() else None


def _is_child(pid: str | None, parent: int) -> bool:
    """Whether this is the parent, or a child of it that lives. Its pid alone could be another's by now."""
    if pid == str(parent):
        return True
    try:
        state, its_parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return False
    return state != "Z" and int(its_parent) == parent
