"""The runbook names nothing that does not exist: commands, settings, log events, alerts, views."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.shared.settings.model import variables

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
ALERTS = ROOT / "ops/prometheus/alerts.yml"

_CONSOLE = re.compile(r"^ *```console\n(?P<lines>.*?)^ *```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_WORD = re.compile(r"[a-z]+(?:_[a-z]+)+")
_LEVELS = {"trace", "debug", "info", "warning", "error", "exception", "log"}
# What Postgres, PgBouncer and the API themselves call so.
_OF_SERVERS = {
    "max_connections",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "pg_terminate_backend",
    "pool_mode",
    "pg_notification_queue_usage",
    # Columns of the API's table, our schema, and a metric.
    "orcheo_dispatch_listen_up",
    "orcheo_dispatch_pending_turns",
    "triggered_by",
    # Why a run is unclaimed.
    "not_in_allow_list",
    "orcheo_dispatch",
}


def _invocations() -> list[str]:
    """Return what follows `orcheo-dispatch` wherever the page has somebody type it."""
    blocks = [block["lines"].replace("\\\n", " ") for block in _CONSOLE.finditer(RUNBOOK)]
    typed = [line.strip()[2:] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^ *```.*?^ *```$", "", RUNBOOK, flags=re.DOTALL | re.MULTILINE)
    typed += [span for span in _SPAN.findall(prose) if "orcheo-dispatch " in span]
    return sorted({shlex.join(words) for line in typed for words in _commands(line)})


def _commands(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each `orcheo-dispatch` in a line of a shell, up to a pipe or the like."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    for number, word in enumerate(words):
        first = number == 0 or set(words[number - 1]) <= set("|&;")
        if word == "orcheo-dispatch" or (first and word.endswith("/bin/orcheo-dispatch")):
            yield list(itertools.takewhile(lambda word: not set(word) <= set("|&;<>"), words[number + 1 :]))


@pytest.mark.parametrize("invocation", _invocations())
def test_each_command_is_taken_with_its_options(invocation: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    name, *arguments = shlex.split(invocation)
    if name.startswith("-"):
        assert any(name in option.opts for option in group.params)
        return
    assert name in group.commands
    # `xargs` brings the runs.
    wanting = name in {"cancel", "fail", "requeue"} and not any(word.startswith("RUN") for word in arguments)
    group.commands[name].make_context(name, [*arguments, *(["RUN"] if wanting else [])])


def test_commands_are_found_on_the_page() -> None:
    assert {invocation.split()[0] for invocation in _invocations()} >= {"migrate", "check", "status", "requeue", "poll"}


def test_each_variable_is_a_setting_or_orcheos_own() -> None:
    used = set(re.findall(r"\b(?:ORCHEO_|REDIS_)[A-Z_]+\b", RUNBOOK)) - set(variables())
    sources = _orcheos()
    assert {
        name for name in used if f'"{name.removeprefix("ORCHEO_")}"' not in sources and name not in sources
    } == set()


def test_each_event_and_view_exists() -> None:
    words = {
        word for span in _SPAN.findall(RUNBOOK) for word in _WORD.findall(re.sub(r"\S*[./=@:]\S*|[A-Z]\S*", "", span))
    }
    assert words - _events() - _OF_SERVERS == set()


def test_each_event_of_the_table_is_logged() -> None:
    section = RUNBOOK.split("## What the log says")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in _SPAN.findall(row)}
    assert len(named) > 10
    assert named - _events() == set()


def test_each_thing_of_our_schema_exists() -> None:
    made = "\n".join(
        path.read_text() for path in sorted((ROOT / "shared/schema/migrations/versions").iterdir()) if path.is_file()
    )
    for name in set(re.findall(r"orcheo_dispatch\.([a-z_]+)", RUNBOOK)):
        assert re.search(rf"CREATE (?:OR REPLACE )?(?:VIEW|TABLE) orcheo_dispatch\.{name}\b", made), name


def test_each_alert_has_its_section() -> None:
    headings = re.findall(r"^### (Orcheo\w+)$", RUNBOOK, re.MULTILINE)
    assert headings == list(_alerts())


def test_each_file_that_is_named_exists() -> None:
    for name in set(re.findall(r"`((?:ops|docs|tests)/[\w./-]+)`", RUNBOOK)):
        assert (ROOT / name).exists(), name


def _alerts() -> Iterator[str]:
    rules: dict[str, Any] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        yield from (rule["alert"] for rule in group["rules"] if "alert" in rule)


def _events() -> set[str]:
    """Return the first argument of each call that logs."""
    found = set()
    for package in ("shared", "dispatcher", "worker", "ops"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LEVELS:
                    found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {word for word in found if isinstance(word, str)}


def _orcheos() -> str:
    found = importlib.util.find_spec("orcheo")
    backend = importlib.util.find_spec("orcheo_backend")
    assert found is not None, "orcheo is not installed"
    assert backend is not None, "orcheo-backend is not installed"
    folders = [Path(each) for spec in (found, backend) for each in spec.submodule_search_locations or ()]
    return "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
