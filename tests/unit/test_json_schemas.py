"""The schemas of `--json`: each command has one, and docs/json.md lists the same names and types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orcheo_dispatch.ops.schemas import names, read_schema
from orcheo_dispatch.shared.errors import SettingsError
from tests.support.schemas import closed, commands_with_json, schema

_DOCUMENT = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \| (?P<type>[^|]+?) \|", re.MULTILINE)
_WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "object": "object"}


def _word(told: dict[str, Any]) -> str:
    """Return the type of a property in the words of docs/json.md."""
    if "anyOf" in told:
        return " or ".join(_word(each) for each in told["anyOf"])
    if "$ref" in told:
        return "object"
    if isinstance(told["type"], list):
        return " or ".join(_word({**told, "type": each}) for each in told["type"])
    if told["type"] == "null":
        return "null"
    if told["type"] == "array":
        return f"list of {_word(told['items'])}s"
    if told["type"] == "object" and "additionalProperties" in told:
        return f"object of {_word(told['additionalProperties'])}s"
    return "time" if "pattern" in told else _WORDS[told["type"]]


def _tables(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object that a schema describes, with the heading of its table."""
    told = schema(name)
    yield told["title"], told["items"] if told["type"] == "array" else told
    for part in told.get("$defs", {}).values():
        if "title" in part:
            yield part["title"], part


def _rows(heading: str) -> dict[str, str]:
    (section,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", _DOCUMENT, re.MULTILINE | re.DOTALL)
    return {row["name"]: row["type"].strip() for row in _ROW.finditer(section)}


def test_each_command_with_json_has_a_schema() -> None:
    """Add ops/schemas/COMMAND.json, or GROUP-COMMAND.json, for a new one."""
    # Those of an option or an argument that changes what is printed are named COMMAND-OPTION.
    assert set(names()) - {"alerts-test", "runs-pending", "runs-unclaimed"} == commands_with_json()


@pytest.mark.parametrize("name", names())
def test_schema_is_one(name: str) -> None:
    told = schema(name)
    jsonschema.Draft202012Validator.check_schema(told)
    assert told["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert told["$id"] == f"urn:orcheo-dispatch:schema:{name}"
    for heading, part in _tables(name):
        assert part["type"] == "object", heading
        assert part["required"] == list(part["properties"]), heading
        assert "additionalProperties" not in part, f"{heading}: a later release may add names"


@pytest.mark.parametrize("name", names())
def test_document_lists_what_the_schema_says(name: str) -> None:
    for heading, part in _tables(name):
        assert _rows(heading) == {key: _word(told) for key, told in part["properties"].items()}, heading


def test_every_table_of_the_document_is_that_of_a_schema() -> None:
    described = {heading for name in names() for heading, _ in _tables(name)}
    headings = re.findall(r"^##+ (.+)$", _DOCUMENT, re.MULTILINE)
    assert {heading for heading in headings if _rows(heading)} == described


def test_closed_schema_refuses_a_name_that_it_does_not_list() -> None:
    document = [{"name": "live", "ok": True, "why": [], "more": 1}]
    jsonschema.Draft202012Validator(schema("health")).validate(document)
    with pytest.raises(jsonschema.ValidationError, match="'more' was unexpected"):
        jsonschema.Draft202012Validator(closed(schema("health"))).validate(document)


def test_unknown_name_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^COMMAND='beat' is invalid: expected one of adopt, "):
        read_schema("beat")
