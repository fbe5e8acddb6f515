"""Who gives a command: the login name of the user of the shell."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orcheo_dispatch.shared.ledger.operators.operations import Author

_LONGEST_NAME = 100


def author(why: str | None = None) -> Author:
    """Return the author of what this command does, for the log of operations."""
    from orcheo_dispatch.shared.ledger.operators.operations import Author, Interface

    return Author(login_name(), Interface.COMMAND, None if why is None else storable(why))


def login_name() -> str:
    """Return the login name of the user who gives the command, also if they do so through sudo."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        name = f"uid-{os.getuid()}"
    return storable(name)[:_LONGEST_NAME]


def storable(text: str) -> str:
    """Return text that Postgres can store, whatever bytes an argument or the environment held."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
