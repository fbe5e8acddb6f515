"""JSON Schemas of what commands print with `--json`, one file per command: `group-command` for one of a group."""

from __future__ import annotations

from importlib.resources import files

from orcheo_dispatch.shared.errors import SettingsError

_FOLDER = files("orcheo_dispatch.ops.schemas")
_SUFFIX = ".json"


def names() -> list[str]:
    """Return the names of all schemas, in order."""
    return sorted(each.name.removesuffix(_SUFFIX) for each in _FOLDER.iterdir() if each.name.endswith(_SUFFIX))


def read_schema(name: str) -> str:
    """Return a schema as text. Raises `SettingsError` for a name that has none."""
    if name not in names():
        raise SettingsError.wrong("COMMAND", name, "one of " + ", ".join(names()))
    return _FOLDER.joinpath(name + _SUFFIX).read_text(encoding="utf-8")
