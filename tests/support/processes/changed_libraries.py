"""Processes in which a library is another release: one thing of it changed, as it is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "TEST_CHANGES"
AT_START = ""

# Read by every Python process that has its folder on PYTHONPATH, before anything else is imported.
_SITECUSTOMIZE = f"""
import importlib.util, json, os, sys

changes = json.loads(os.environ.get({VARIABLE!r}, "{{}}"))
exec(changes.pop({AT_START!r}, ""), {{}})

class Changing:
    def find_spec(self, name, path=None, target=None):
        if name not in changes:
            return None
        change = changes.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def execute_and_change(module):
            execute(module)
            exec(change, module.__dict__)
        spec.loader.exec_module = execute_and_change
        return spec

sys.meta_path.insert(0, Changing())
"""


def changing(folder: Path, environment: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with which each of these modules, once imported, executes a change of itself.

    The change with the name `AT_START` is executed first.
    """
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    path = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    return {**environment, "PYTHONPATH": path, VARIABLE: json.dumps(changes)}


def hidden(module: str, name: str, *, from_package: str) -> dict[str, str]:
    """Return the change that hides a name of a module from a package, and from nobody else."""
    change = f"""
_hidden_name = globals().pop({name!r})
def __getattr__(name):
    import sys
    if name == {name!r} and not sys._getframe(1).f_globals.get("__name__", "").startswith({from_package!r}):
        return _hidden_name
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
"""
    return {module: change}
