"""Read secrets from files: of systemd's `LoadCredential=`, or in any folder that `CREDENTIALS_DIRECTORY` names.

A file is named after the variable that it sets. If that variable is also set, the environment wins, so that
a shell, or a drop-in of a unit, can override the value. An empty file or variable counts as unset.

The reader of pydantic-settings (`SecretsSettingsSource`) is not used: it has no limit on the size of a file, its error
for a file that is not text does not name the file, and Orcheo needs the same values in the environment of the process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.values import clean

DIRECTORY = "CREDENTIALS_DIRECTORY"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_MOST_BYTES = 1024 * 1024
"""systemd's limit for all credentials of a unit together."""


def read_credentials(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the non-empty credentials by variable; none if no folder is named.

    Files that are not named after a variable are ignored. Raises `SettingsError`, which quotes no content.
    """
    directory = environment.get(DIRECTORY)
    if not directory:
        return {}
    try:
        paths = sorted(Path(directory).iterdir())
    except OSError as error:
        raise SettingsError.wrong(DIRECTORY, directory, f"a readable folder: {error.strerror}") from error
    found = {path.name: _read(path) for path in paths if _VARIABLE.fullmatch(path.name)}
    return {name: text for name, text in found.items() if text}


def export_credentials(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set unset environment variables from credentials, because Orcheo reads only its environment.

    They are set only in this process, after its start, so `/proc/PID/environ`, `systemctl show` and the journal do
    not show them.
    Raises `SettingsError` as `read_credentials` does.
    """
    for name, text in read_credentials(environment).items():
        if _is_unset(environment.get(name)):
            environment[name] = text


def _is_unset(value: str | None) -> bool:
    """Return whether a variable counts as unset; one that is not text is an error, and counts as set."""
    try:
        return not value or not clean(value)
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"credential {path.name} cannot be read: {error.strerror}") from error
    if len(raw) > _MOST_BYTES:
        raise SettingsError(f"credential {path.name} cannot be used: it has more than {_MOST_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SettingsError(f"credential {path.name} cannot be used: it is not UTF-8 text") from None
    if "\0" in text:
        raise SettingsError(f"credential {path.name} cannot be used: it contains a NUL")
    return text
