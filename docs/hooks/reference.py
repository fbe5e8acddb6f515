"""The pages of the reference, made of the code that they describe."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from orcheo_dispatch.shared import errors
from orcheo_dispatch.shared.settings.model import Settings, variables

_SETTINGS = """\
# Settings

Every environment variable that the processes read, made of `shared/settings/model.py`. Durations are seconds. An empty
variable counts as unset. A wrong one is named with what it got and what it takes, and the exit code is 2. Advice on the
use of each is in the [table of settings](../settings.md).
"""

_EXAMPLES = re.compile(r"^\x08?\n?Examples:\n(?P<lines>(?:  .+\n)+)", re.MULTILINE)

_EXIT_CODES = """
## Exit codes

| code | meaning |
|---|---|
| 0 | Done. |
{rows}
| 130 | Interrupted. |
"""


def commands() -> str:
    """Return the page of all commands, as Typer's own `utils docs` writes it, with the exit codes below."""
    typer = [sys.executable, "-m", "typer", "orcheo_dispatch.ops.cli", "utils", "docs", "--name", "orcheo-dispatch"]
    written = subprocess.run([*typer, "--title", "Commands"], check=True, capture_output=True, text=True)
    page = _EXAMPLES.sub(_code, written.stdout).rstrip()
    return page + "\n" + _EXIT_CODES.format(rows="\n".join(_exit_codes()))


def settings() -> str:
    """Return the page of all settings: a section for each, in the order of the class."""
    schema = Settings.model_json_schema(by_alias=True)["properties"]
    sections = [_SETTINGS]
    for name, (default, description) in variables().items():
        table = f"| default | takes |\n|---|---|\n| `{default}` | {_takes(schema[name])} |\n"
        sections.append(f"## `{name}`\n\n{description}\n\n{table}")
    return "\n".join(sections)


def decisions(folder: Path) -> str:
    """Return the page that lists the decisions in `folder`, each by its heading."""
    lines = ["# Decisions", "", "Choices that somebody may ask about, and what led to them.", ""]
    for path in sorted(folder.glob("0*.md")):
        heading = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{heading.replace('. ', ' · ', 1)}]({path.name})")
    return "\n".join(lines) + "\n"


def _code(examples: re.Match[str]) -> str:
    """Return the examples of a command as a block of code."""
    lines = "".join(f"$ {line.strip()}\n" for line in examples["lines"].splitlines())
    return f"**Examples**:\n\n```console\n{lines}```\n"


def _takes(schema: dict[str, Any]) -> str:
    """Say in words what JSON schema says of one setting."""
    if "anyOf" in schema:
        return _takes(next(choice for choice in schema["anyOf"] if choice.get("type") != "null"))
    if "$ref" in schema:
        definitions = Settings.model_json_schema(by_alias=True)["$defs"]
        return _takes(definitions[schema["$ref"].removeprefix("#/$defs/")])
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if schema["type"] in ("integer", "number"):
        return " ".join(["a whole number" if schema["type"] == "integer" else "a number", *_bounds(schema)])
    if schema["type"] == "array":
        return "words, separated by commas"
    if schema.get("format") == "password":
        return "a secret text: never shown"
    return f"a text that matches `{schema['pattern']}`" if "pattern" in schema else "a text"


def _bounds(schema: dict[str, Any]) -> list[str]:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return [f"{word} {_number(schema[key])}" for key, word in words.items() if key in schema]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _exit_codes() -> list[str]:
    """Return a row for each exit code below the tree of errors, with the docstring of the highest class that has it."""
    found: dict[int, str] = {}
    level: list[type[errors.DispatchError]] = [errors.DispatchError]
    while level:
        for kind in level:
            found.setdefault(kind.exit_code, (kind.__doc__ or "").splitlines()[0])
        level = [child for kind in level for child in kind.__subclasses__()]
    return [f"| {code} | {meaning} |" for code, meaning in sorted(found.items())]
