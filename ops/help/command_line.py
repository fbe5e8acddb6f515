"""How to type the commands of this installation, so that a shell with any `PATH` finds them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "orcheo-dispatch"
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")
"""Folders that are on the `PATH` of every login shell. An activated environment is on that of one shell only."""


def typed(name: str = NAME) -> str:
    """Return what to type for a command of this installation: its name, or its full path, quoted for a shell.

    The name alone is enough if every shell finds this file by it. Without such a file, our own command is a module of
    the Python that runs.
    """
    path = _beside_python(name)
    if path is None:
        return f"{shlex.quote(sys.executable)} -m orcheo_dispatch.ops.cli" if name == NAME else name
    found = shutil.which(name, path=os.pathsep.join(_FOLDERS))
    return name if found and Path(found).resolve() == path.resolve() else shlex.quote(str(path))


def _beside_python(name: str) -> Path | None:
    """Return the file of a command: beside the Python that runs, or where this process was started from."""
    started = Path(sys.argv[0])
    candidates = [Path(sys.executable).with_name(name)]
    if started.name == name:
        candidates.append(started.absolute())
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
