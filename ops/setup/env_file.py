"""Write a file of secrets: whole at any time, readable by its owner alone, and never over one that is there unasked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orcheo_dispatch.shared.errors import DispatchError

MODE = 0o600


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write `text` to `path` with mode 0600, in one step. Raises `DispatchError` if it cannot, or if a file is there.

    With `replace`, a file that is there is replaced; of a symbolic link, what it leads to.
    """
    target = path.resolve()
    try:
        _write(target, text, replace=replace)
    except FileExistsError:
        raise DispatchError(f"{path} exists, nothing was written: --force replaces it") from None
    except OSError as error:
        raise DispatchError(f"cannot write {path}: {error.strerror}") from error


def _write(target: Path, text: str, *, replace: bool) -> None:
    # The file is made with mode 0600.
    number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    new = Path(name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(number, MODE)
            os.fsync(number)
        if replace:
            new.replace(target)
        else:
            # Fails if there is a file, in one step with the check.
            target.hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)
