"""The schemas of what `--json` prints, and the commands that have the option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import typer
from typer.core import TyperGroup

from orcheo_dispatch.ops.cli import app
from orcheo_dispatch.ops.schemas import read_schema


def commands_with_json() -> set[str]:
    """Return the names of all commands that print JSON, those of groups as `group-command`."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return set(_with_json(group, ()))


def _with_json(group: TyperGroup, above: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _with_json(command, (*above, name))
        # `answer --json` takes the answer: there the option has another name.
        elif any(
            {"--json", "--output-json"} & {*each.opts} and getattr(each, "is_flag", False) for each in command.params
        ):
            yield "-".join((*above, name))


def schema(name: str) -> dict[str, Any]:
    """Return the schema of this name."""
    found: dict[str, Any] = json.loads(read_schema(name))
    return found


def closed(node: Any) -> Any:
    """Return a schema that allows no name that it does not list: published ones do, for the sake of later releases."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {key: closed(value) for key, value in node.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def assert_valid(name: str, document: Any) -> None:
    """Fail unless the document has what its schema says, and nothing else."""
    jsonschema.Draft202012Validator(closed(schema(name))).validate(document)
