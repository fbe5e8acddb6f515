"""Rules that can be read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "dispatcher", "worker")
# What asks the host what time it is. time.monotonic measures a span and is allowed.
CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def _modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_time_is_never_the_hosts(path: Path) -> None:
    assert not set(_calls(path)) & CLOCKS


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_status_of_runs_changes_in_one_module_only(path: Path) -> None:
    if path.parent.name != "statements":
        assert "UPDATE workflow_runs" not in path.read_text()


def test_every_package_module_has_one_idea() -> None:
    """A module that has grown past about 250 lines has two."""
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _modules()}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}
