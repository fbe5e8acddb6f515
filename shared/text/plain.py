r"""Escape untrusted text so that it is safe to show in a terminal, a log line or a page.

Clients choose names, labels, reasons and error texts. An escape sequence in one can move the cursor, set the title of
a window or write to the clipboard; a right-to-left mark shows `exe.txt` as `txt.exe`; a line break
forges a line. Such characters are shown as escapes, such as `\u001b`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TextIO

_ENDS = " ..."
_MOST_MARKS = 3
"""Maximum number of combining marks on one letter; more would overlap the lines above and below."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Python considers these printable, but they show as nothing or as a space.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)


def plain(text: str, limit: int | None = None) -> str:
    """Return `text` as one line without control sequences, cut to `limit` characters and ` ...` if it is longer."""
    cut = limit is not None and len(text) > limit
    kept = text[:limit] if cut else text
    if not (kept.isascii() and kept.isprintable()):
        kept = _escaped(kept)
    return kept + _ENDS if cut else kept


def plain_lines(text: str, limit: int | None = None) -> str:
    """Return `text` like `plain`, but with its line breaks, for places that show several lines."""
    cut = limit is not None and len(text) > limit
    lines = (text[:limit] if cut else text).replace("\r\n", "\n").split("\n")
    return "\n".join(plain(line) for line in lines) + (_ENDS if cut else "")


def say(text: str = "", *, to: TextIO | None = None) -> None:
    """Print lines for the caller of a command, to standard output unless `to` names another stream."""
    print(plain_lines(text), file=to or sys.stdout)


def is_plain(text: str) -> bool:
    """Return whether `text` needs no escapes."""
    return plain(text) == text


def _escaped(text: str) -> str:
    parts, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in {"Mn", "Me"} else 0
        shown = character.isprintable() and marks <= _MOST_MARKS and not _UNSEEN.match(character)
        parts.append(character if shown else _escape(character))
    return "".join(parts)


def _escape(character: str) -> str:
    number = ord(character)
    return _SHORT.get(character) or (f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}")
