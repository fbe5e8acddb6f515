"""Rules that can be read off the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "dispatcher", "worker", "ops")
_DIALECT = re.compile(
    r"(?<![a-z])(away|goodbye|mend(?:s|ed)?|gets? on|getting on|seen to|looked after|so many|told|got)(?![a-z])"
)
"""Words that a reader has to decode: unavailable, deregister, fix, make progress, handled, monitored."""
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
    if path.relative_to(ROOT).parts[0] == "ops":
        # What a command prints of the host's time decides nothing.
        return
    if path.relative_to(ROOT) == Path("shared/traces/clock.py"):
        # Nor does what a span says.
        return
    assert not set(_calls(path)) & CLOCKS


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_status_of_runs_changes_in_one_module_only(path: Path) -> None:
    if path.parent.name != "statements":
        assert "UPDATE workflow_runs" not in path.read_text()


def test_folders_hold_few_modules() -> None:
    """A folder with more has two subjects; circles between folders are an import contract (`make imports`)."""
    folders = {path.parent for path in _modules()}
    sizes = {
        str(each.relative_to(ROOT)): sum(path.name != "__init__.py" for path in each.glob("*.py")) for each in folders
    }
    assert {name: size for name, size in sizes.items() if size > 12 and not name.endswith("versions")} == {}


def test_modules_are_not_called_what_says_nothing() -> None:
    names = {path.stem for path in _modules()}
    assert (
        names & {"util", "utils", "helper", "helpers", "manager", "misc", "common", "data", "queue", "types"} == set()
    )


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_events_and_errors_are_in_plain_english(path: Path) -> None:
    said = [text for text in _said(ast.parse(path.read_text())) if _DIALECT.search(text)]
    assert said == []


def _said(tree: ast.AST) -> Iterator[str]:
    """Yield the texts that a module raises or logs."""
    for node in ast.walk(tree):
        logs = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        if logs or isinstance(node, ast.Raise):
            yield from (
                each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
            )
