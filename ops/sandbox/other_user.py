"""Run a server as `nobody` when we are root, because PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from orcheo_dispatch.shared.errors import DatabaseError

NAME = "nobody"


def let_in(directory: Path) -> None:
    """Let other users pass through `directory` and its parents, without letting them list those.

    Only folders below the system's folder for temporary files are changed. Raises `DatabaseError` where
    another one is in the way.
    """
    scratch = Path(tempfile.gettempdir()).resolve()
    for folder in _closed(directory.resolve()):
        if scratch not in folder.parents:
            raise DatabaseError(
                f"PostgreSQL does not run as root, and {NAME} may not enter {folder}: use a folder below {scratch}"
            )
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)


def give(paths: Iterable[Path]) -> None:
    """Make `paths` the other user's own."""
    entry = pwd.getpwnam(NAME)
    for path in paths:
        os.chown(path, entry.pw_uid, entry.pw_gid)


def within_reach(binaries: Path, directory: Path) -> Path:
    """Return `binaries`, or a copy of them in `directory` where the other user cannot come to them.

    A virtualenv in the home of root is such a place.
    """
    if not _closed(binaries.resolve()):
        return binaries
    installation, package = binaries.parent, binaries.parents[1]
    # The programs look for their libraries beside the package, by a relative path.
    copied = directory / "binaries" / package.name / installation.name
    if not copied.exists():
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(libraries, directory / "binaries" / libraries.name, dirs_exist_ok=True)
        shutil.copytree(installation, copied, ignore=shutil.ignore_patterns("include"))
        for folder, _, _ in os.walk(directory / "binaries"):
            Path(folder).chmod(0o755)
    return copied / "bin"


def _closed(path: Path) -> list[Path]:
    return [folder for folder in (path, *path.parents) if not folder.stat().st_mode & stat.S_IXOTH]
