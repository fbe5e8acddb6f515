"""Ask a child process to import Orcheo, which takes seconds, and to say whether it has what a worker uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from orcheo_dispatch.shared.process.plugins import let_plugins_in

_MODULE = "orcheo_dispatch.worker.orcheo.opening.probe"
_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found; each is None where nothing is wrong."""

    wrong: str | None = None
    """Why no worker can start."""
    unfit: str | None = None
    """Why checkpoints are written by LangGraph's own saver."""


def ask() -> Probed:
    """Import Orcheo in another process and return what that found. Never raises."""
    # The command that asks keeps pydantic's plugins out of itself; a worker has them.
    environment = dict(os.environ)
    let_plugins_in(environment)
    try:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE],
            env=environment,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Probed(wrong=f"Orcheo was not imported within {_SECONDS:g} s")
    try:
        return Probed(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        return Probed(wrong=f"importing Orcheo ended its process with exit status {done.returncode}")
