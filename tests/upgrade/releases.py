"""The earlier code that an installation may be upgraded from, and an environment of its own for each.

No version is tagged yet, and the section of 0.1.0 in CHANGELOG.md has no date. So there are two: the last commit before
the first change that `[Unreleased]` lists, and the last one before packages were imported as `orcheo_dispatch`, which
has the newest revision of the schema. Once a version is tagged, its tag replaces both (RELEASING.md).
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "upgrade"


class NotInHistoryError(Exception):
    """The clone has no such commit."""


@dataclass(frozen=True, slots=True)
class Release:
    """Code of an earlier release."""

    name: str
    commit: str
    revision: str
    """Of the schema that its processes need at their start."""


OLD = Release("0.1.0", "22cfc1cfac45f9a19f5a82ccbb7c78e24e52013f", "0001")
LAST = Release("8557d8f", "8557d8fd6c9c7494defe4e65377480475952c200", "0005")
RELEASES = (OLD, LAST)


@dataclass(frozen=True, slots=True)
class Installed:
    """How the commands of a release are started: the first words, and what Python finds besides the installation."""

    name: str
    command: Sequence[str]
    path: Path
    revision: str


def build(release: Release) -> Installed:
    """Build a wheel of the release and install it with the releases of libraries that its own constraints name.

    An environment that is there already is used again. Raises `NotInHistoryError`, and `CalledProcessError` where it
    cannot be installed.
    """
    folder = FOLDER / release.commit[:12]
    command = folder / "bin" / "orcheo-dispatch"
    if not command.exists():
        shutil.rmtree(folder, ignore_errors=True)
        source = folder / "source"
        unpack(release, source)
        uv = str(Path(sys.executable).with_name("uv"))
        _do(uv, "build", "--quiet", "--wheel", "--out-dir", str(folder / "wheel"), str(source))
        _do(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
        (wheel,) = (folder / "wheel").glob("*.whl")
        _do(
            *(uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")),
            *("--constraint", str(source / "constraints.txt"), f"orcheo-dispatch[orcheo] @ {wheel.as_uri()}"),
        )
    return Installed(release.name, [str(command)], tests_alone(folder), release.revision)


def unpack(release: Release, folder: Path) -> None:
    """Write the files of the release's commit into a folder. Raises `NotInHistoryError`."""
    command = ["git", "archive", "--format=tar", release.commit]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise NotInHistoryError(
            f"the history has no commit {release.commit[:12]}: clone it whole (git fetch --unshallow)"
        )
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="tar")


def tests_alone(folder: Path) -> Path:
    """Return a folder in which Python finds `tests` and nothing else: the root would hide packages of the release."""
    path = folder / "path"
    path.mkdir(exist_ok=True)
    link = path / "tests"
    if not link.is_symlink():
        link.symlink_to(ROOT / "tests")
    return path


def _do(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ)
