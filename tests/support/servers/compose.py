"""Compose files as Docker Compose reads them: variables filled in, and one file over another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

type Tree = dict[str, Any]

_VARIABLE = re.compile(r"\$(?:\$|(?P<bare>\w+)|\{(?P<name>\w+)(?::?(?P<sign>[-?])(?P<rest>[^{}]*))?\})")
# These replace what the earlier file says; other lists are appended to.
_REPLACED = {"command", "entrypoint", "test"}


def read_compose(path: Path, variables: Mapping[str, str]) -> Tree:
    """Return a file with its variables filled in. Raises `KeyError` for a variable that has to be set."""
    tree: Tree = _filled(yaml.safe_load(path.read_text(encoding="utf-8")), variables)
    return tree


def merged(first: Tree, second: Tree) -> Tree:
    """Return the second file over the first."""
    return {key: value for key, value in _over(first, second, "").items() if not key.startswith("x-")}


def environment_of(service: Tree, env_file: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service's container: its own over that of its `env_file`."""
    from_file = env_file if service.get("env_file") else {}
    return {**from_file, **_mapping(service.get("environment", {}))}


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, variables), node) if isinstance(node, str) else node


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name = found["bare"] or found["name"]
    if name is None:
        return "$"
    if given := variables.get(name):
        return given
    if found["sign"] == "?":
        raise KeyError(name)
    return found["rest"] or ""


def _over(first: Any, second: Any, key: str) -> Any:
    if key == "environment":
        return {**_mapping(first), **_mapping(second)}
    if key == "depends_on":
        return {**_conditions(first), **_conditions(second)}
    if key == "volumes" and isinstance(first, list):
        return list({_target(each): each for each in [*first, *second]}.values())
    if isinstance(first, dict) and isinstance(second, dict):
        both = {name: _over(first[name], second[name], name) for name in first.keys() & second.keys()}
        return {**first, **second, **both}
    if isinstance(first, list) and isinstance(second, list) and key not in _REPLACED:
        return [*first, *second]
    return second


def _mapping(given: Any) -> dict[str, str]:
    pairs = given.items() if isinstance(given, dict) else (each.partition("=")[::2] for each in given or [])
    return {name: str(value) for name, value in pairs}


def _conditions(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {name: {"condition": "service_started"} for name in given or []}


def _target(volume: str) -> str:
    return volume.split(":")[1]
