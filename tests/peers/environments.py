"""The releases that are compared, and a virtual environment for each system that is not in the project's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "peers"
_VERSIONS = (
    "import importlib.metadata, json, sys; print(json.dumps({n: importlib.metadata.version(n) for n in sys.argv[1:]}))"
)


@dataclass(frozen=True, slots=True)
class Environment:
    """Releases that are installed together; none for the project's own environment."""

    name: str
    requirements: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    """Packages whose versions the report names."""

    @property
    def programs(self) -> Path:
        """The folder of its programs."""
        return FOLDER / self.name / "bin" if self.requirements else Path(sys.executable).parent

    def build(self) -> None:
        """Make it, unless it has these releases. Raises `CalledProcessError` where they cannot be installed."""
        if not self.requirements:
            return
        stamp = FOLDER / f"{self.name}.txt"
        wanted = "\n".join(self.requirements)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, FOLDER / self.name], check=True)
        python = self.programs / "python"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *self.requirements], check=True)
        stamp.write_text(wanted)

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the packages in `shown`."""
        command = [str(self.programs / "python"), "-c", _VERSIONS, *self.shown]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found: dict[str, str] = json.loads(printed)
        return found


PROJECT = Environment("project", (), ("orcheo-backend", "orcheo", "langgraph", "celery"))
LANGGRAPH = Environment(
    "langgraph",
    (
        "langgraph-cli[inmem]==0.4.40",
        "langgraph-api==0.16.7",
        "langgraph-runtime-inmem==0.36.7",
        "langgraph==1.2.24",
        "langgraph-checkpoint==4.3.2",
    ),
    ("langgraph-cli", "langgraph-api", "langgraph-runtime-inmem", "langgraph"),
)
AEGRA = Environment(
    "aegra",
    (
        "aegra-api==0.11.0",
        "aegra-cli==0.11.0",
        "langgraph==1.2.24",
        "langgraph-checkpoint==4.3.2",
        "langgraph-checkpoint-postgres==3.2.0",
    ),
    ("aegra-api", "langgraph", "langgraph-checkpoint-postgres"),
)
DBOS = Environment("dbos", ("dbos==3.4.0", "sqlalchemy==2.1.9", "psycopg[binary]==3.3.9"), ("dbos",))
