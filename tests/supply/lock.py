"""Make and read the locks: `python -m tests.supply.lock UV` writes them anew, with `UV` the path of the uv to use.

A lock lists distributions by version and by the hashes of all their files. The versions are those of constraints.txt.
Made with the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "3.12"
"""The oldest Python that the locks are for."""
_HEAD = "# Made by 'make lock' from pyproject.toml and constraints.txt: {what}.\n"
_ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?$")
_NEVER = re.compile(r"(?:sys_platform == '(?:win32|emscripten)'(?: or |$))+")
_INSTALL = ("--group", "install")
_WORK = (
    "pyproject.toml",
    "--extra",
    "demo",
    "--extra",
    "traces",
    "--extra",
    "alerts",
    "--group",
    "dev",
)


@dataclass(frozen=True)
class Lock:
    """One file, what is in it, and what it is resolved from. It leaves out what `.venv` holds without it."""

    file: str
    what: str
    sources: tuple[str, ...]


LOCKS = (
    Lock("requirements.build.lock", "what .venv is made with, and what builds from source", _INSTALL),
    Lock("requirements.lock", "what .venv holds", (*_INSTALL, *_WORK)),
    Lock("requirements.bench.lock", "what 'make bench' adds", (*_INSTALL, *_WORK, "--group", "bench")),
    Lock(
        "requirements.supply.lock",
        "what 'make supply' and 'make release-check' add",
        (*_INSTALL, *_WORK, "--group", "release", "--group", "supply"),
    ),
)
BASE = LOCKS[:2]
"""The locks of `.venv`; each of the others is installed on top of these, and may have what another has."""


@dataclass(frozen=True)
class Entry:
    """One distribution of a lock, with the lines that it has there."""

    name: str
    version: str
    marker: str | None
    lines: tuple[str, ...]

    @property
    def hashes(self) -> list[str]:
        """Return the hashes of its files."""
        return [each for line in self.lines for each in re.findall(r"--hash=(sha256:[0-9a-f]{64})(?:\s|$)", line)]


def entries(text: str) -> list[Entry]:
    """Return what a lock lists, in its order. Raise ValueError for a line that is none of a lock's."""
    found: list[Entry] = []
    for line in text.splitlines():
        if match := _ENTRY.match(line):
            found.append(Entry(match["name"], match["version"], match["marker"], (line,)))
        elif line.startswith("    ") and found:
            found[-1] = Entry(found[-1].name, found[-1].version, found[-1].marker, (*found[-1].lines, line))
        elif line and not line.startswith("#"):
            raise ValueError(f"not a line of a lock: {line!r}")
    return found


def read(lock: Lock) -> list[Entry]:
    """Return what the lock lists."""
    return entries((ROOT / lock.file).read_text())


def write(uv: str) -> None:
    """Resolve and write all locks. Raises CalledProcessError where uv finds no solution."""
    before: set[str] = set()
    for lock in LOCKS:
        resolved = [each for each in entries(_resolved(uv, lock)) if not _NEVER.fullmatch(each.marker or "")]
        added = [each for each in resolved if each.name not in before]
        if lock in BASE:
            before |= {each.name for each in added}
        lines = [line for each in added for line in each.lines]
        (ROOT / lock.file).write_text(_HEAD.format(what=lock.what) + "\n".join(lines) + "\n")
        print(f"{lock.file}: {len(added)} distributions")


def _resolved(uv: str, lock: Lock) -> str:
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON, "--generate-hashes"]
    # No address of an index may get into a lock: each installation has its own.
    command += ["--no-header", "--no-emit-index-url", "--no-emit-find-links", "--constraint", "constraints.txt"]
    done = subprocess.run([*command, *lock.sources], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    write(sys.argv[1])
