"""The sets of releases that are tried, and the environments that hold them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.orcheo.orcheo_releases import FEATURES, Feature

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "compat"
SHOWN = ("orcheo-backend", "orcheo", "orcheo-sdk", "langgraph", "langgraph-checkpoint", "langgraph-checkpoint-postgres")

# What the sets vary, and what follows from it: of these no version is fixed by constraints.txt.
_LOOSE = re.compile(
    r"orcheo|langgraph|langchain|langsmith|deepagents|agentensor|openai|anthropic|google|pydantic|mcp|fastmcp"
)
_VERSIONS = f"""
import importlib.metadata, json
print(json.dumps({{name: importlib.metadata.version(name) for name in {SHOWN!r}}}))
"""


@dataclass(frozen=True, slots=True)
class ReleaseSet:
    """Releases that are installed together."""

    name: str
    requirements: tuple[str, ...]


SETS = (
    ReleaseSet(
        "oldest",
        (
            "orcheo-backend==0.38.0",
            "orcheo==0.43.0",
            "orcheo-sdk",
            "langgraph==1.1.10",
            "langgraph-checkpoint-postgres==3.0.0",
        ),
    ),
    # The command of orcheo-sdk 0.35.0 imports a module of orcheo 0.45.1, and yet accepts 0.45.0.
    ReleaseSet("between", ("orcheo-backend==0.38.4", "orcheo==0.45.0", "orcheo-sdk==0.34.0", "langgraph==1.2.0")),
    ReleaseSet("older core", ("orcheo-backend==0.39.0", "orcheo==0.45.8", "orcheo-sdk", "langgraph==1.2.14")),
    ReleaseSet("newest", ("orcheo-backend", "orcheo", "orcheo-sdk", "langgraph", "langgraph-checkpoint-postgres")),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with a set of releases, this project and what its tests need."""

    set: ReleaseSet
    python: Path
    versions: dict[str, str]

    @property
    def lacks(self) -> list[Feature]:
        """What the tests go without, as these releases do not have it."""
        return [feature for feature in FEATURES if not feature.is_in(self.versions["orcheo"])]


def build(wanted: ReleaseSet) -> Environment:
    """Make the environment anew. Raises `CalledProcessError` where the releases cannot be installed together."""
    folder = FOLDER / wanted.name.replace(" ", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    constraints = folder.with_suffix(".txt")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join(line for line in lines if not line.startswith("#") and not _LOOSE.match(line)))
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            *(uv, "pip", "install", "--quiet", "--upgrade", "--python", python, "--constraint", constraints),
            *("--editable", str(ROOT), "--group", "dev", *_servers(), *wanted.requirements),
        ],
        cwd=ROOT,
        env=os.environ,
        check=True,
    )
    printed = subprocess.run([python, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    return Environment(wanted, python, json.loads(printed))


def _servers() -> list[str]:
    """Return the extra that brings Postgres and Redis, without the bounds of the extra `orcheo`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return list(extras["embedded"])
