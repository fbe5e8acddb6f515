"""docs/logs.md lists every event that the code logs, with its levels."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "dispatcher", "worker", "ops")
LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
# Events that are an argument of the function that logs them: they are looked for as literals.
PASSED_ON = {"worker/heartbeat.py": ("warning", {"run_lost", "lease_not_renewed"})}
# Events whose level is an argument.
LEVEL_VARIES = {"run_skipped": {"info", "warning"}, "logged": {"as logged"}}
_ROW = re.compile(r"\| `(?P<event>[a-z_]+)` \| (?P<levels>[^|]+) \| (?P<who>[^|]+) \| (?P<meaning>[^|]+) \|")


def _of_code() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for event, levels in _of_module(path):
                found.setdefault(event, set()).update(levels)
    return found


def _of_module(path: Path) -> list[tuple[str, set[str]]]:
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text())
    literals = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) != "log" or node.func.attr not in (*LEVELS, "log"):
            continue
        event = node.args[1 if node.func.attr == "log" else 0]
        if not isinstance(event, ast.Constant):
            level, events = PASSED_ON[name]
            assert node.func.attr == level
            assert events <= literals
            found += [(each, {level}) for each in events]
        elif node.func.attr == "log":
            found.append((str(event.value), LEVEL_VARIES[str(event.value)]))
        else:
            found.append((str(event.value), {node.func.attr}))
    return found


def _of_document() -> dict[str, set[str]]:
    found = {}
    for row in _ROW.finditer((ROOT / "docs" / "logs.md").read_text(encoding="utf-8")):
        assert row["event"] not in found, f"{row['event']} is listed twice"
        assert row["who"].strip()
        assert row["meaning"].strip()
        found[row["event"]] = {level.strip().lower() for level in row["levels"].split(",")}
    return found


def test_document_lists_every_event_with_its_levels() -> None:
    assert _of_document() == _of_code()


def test_events_are_names_and_no_sentences() -> None:
    assert [event for event in _of_code() if not re.fullmatch(r"[a-z]+(_[a-z]+)*", event)] == []
