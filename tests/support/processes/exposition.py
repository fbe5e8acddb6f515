"""What our processes really expose, and what an expression of PromQL asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_SELECTOR = re.compile(r"\b(?P<name>orcheo_dispatch_\w+|process_\w+|python_\w+|up)\b(?:\{(?P<matchers>[^}]*)\})?")
_MATCHER = re.compile(r'\s*(?P<label>\w+)\s*(?P<operator>=~|!~|!=|=)\s*"(?P<value>(?:[^"\\]|\\.)*)"\s*,?')
_OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""


@dataclass
class Exposed:
    """The series of any number of processes."""

    series: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"up": [{}]})

    def add(self, body: str) -> None:
        """Add the body of one process's /metrics."""
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                self.series.setdefault(sample.name, []).append(sample.labels)

    def missing(self, expression: str) -> list[str]:
        """Return the selectors of an expression that select nothing of what is exposed."""
        return [selector for selector, name, matchers in _selectors(expression) if not self._some(name, matchers)]

    def _some(self, name: str, matchers: list[tuple[str, str, str]]) -> bool:
        return any(all(_matches(labels, *matcher) for matcher in matchers) for labels in self.series.get(name, ()))


def _selectors(expression: str) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    for found in _SELECTOR.finditer(expression):
        matchers = [
            (matcher["label"], matcher["operator"], matcher["value"])
            for matcher in _MATCHER.finditer(found["matchers"] or "")
            if matcher["label"] not in _OF_PROMETHEUS
        ]
        yield found[0], found["name"], matchers


def _matches(labels: dict[str, str], label: str, operator: str, value: str) -> bool:
    actual = labels.get(label, "")
    equal = re.fullmatch(value, actual) is not None if "~" in operator else actual == value
    return equal != operator.startswith("!")
