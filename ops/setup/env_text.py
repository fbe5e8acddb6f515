"""Write variables as lines that a shell (`set -a; . FILE`) and systemd (`EnvironmentFile=`) read as the same values.

A value of letters, digits and a few marks is written as it is. Any other is put in single quotes, in which nothing has
a meaning to either. But a single quote cannot stand there, and older releases of systemd read a backslash there as an
escape: a value with one of the two is put in double quotes. There both read a backslash as an escape before a double
quote, a backslash, a dollar sign and a backtick, and as itself elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from orcheo_dispatch.ops.adoption.env_advice import read_env_file
from orcheo_dispatch.shared.errors import SettingsError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
_ESCAPED = re.compile(r'["\\$`]')
_QUOTED_LINE = re.compile(r"""^([A-Za-z_][A-Za-z0-9_]*)=(?:'([^'\n]*)'|"((?:[^"\\\n]|\\.)*)")[ \t]*$""", re.MULTILINE)


def assignment(name: str, value: str) -> str:
    """Return the line that sets a variable. Raises `SettingsError`, which quotes no value, if there is no such line."""
    if not _NAME.fullmatch(name):
        raise SettingsError.wrong("name of a variable", name, "letters, digits and _, not beginning with a digit")
    if any(_unwritable(character) for character in value):
        raise SettingsError(
            f"{name} cannot be written to a file that systemd and shells read alike: expected a value without line "
            "breaks and other control characters, in UTF-8"
        )
    if _BARE.fullmatch(value):
        return f"{name}={value}"
    if "'" not in value and "\\" not in value:
        return f"{name}='{value}'"
    escaped = _ESCAPED.sub(r"\\\g<0>", value)
    return f'{name}="{escaped}"'


def read_variables(path: Path) -> dict[str, str]:
    """Return the variables of a file: lines as `assignment` writes them, and any other as Docker Compose reads it.

    Raises `SettingsError` as `read_env_file` does.
    """
    found = read_env_file(path)
    # The reader above would keep a backslash before a dollar sign, and expand ${...} in single quotes.
    for name, literal, escaped in _QUOTED_LINE.findall(path.read_text(encoding="utf-8-sig")):
        found[name] = literal or re.sub(r'\\(["\\$`])', r"\1", escaped)
    return found


def file_text(head: str, variables: Mapping[str, str]) -> str:
    """Return the text of a file: `head` as comments, then the variables in their order."""
    comments = [f"# {line}".rstrip() for line in head.splitlines()]
    return "\n".join([*comments, *(assignment(name, value) for name, value in variables.items())]) + "\n"


def _unwritable(character: str) -> bool:
    """Return whether systemd refuses a value with this character: control characters, and what is no text in UTF-8."""
    number = ord(character)
    no_character = 0xFDD0 <= number <= 0xFDEF or number & 0xFFFE == 0xFFFE
    return character != "\t" and (unicodedata.category(character) in {"Cc", "Cs"} or no_character)
