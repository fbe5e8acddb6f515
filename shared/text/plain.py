r"""Escape text from outside so that it is safe to show: in a terminal, a log line, a page.

A client chooses names, labels, reasons and error texts. An escape sequence in one moves the cursor, sets the title of
a window or writes to the clipboard; a mark for writing from right to left shows `exe.txt` as `txt.exe`; a line break
forges a line. Such characters are shown as escapes, such as `\u001b`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TextIO

_ENDS = " ..."
_MOST_MARKS = 3
"""Marks above and below one letter; more of them reach into the lines around."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Python calls these printable; they are seen as nothing, or as a blank.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef]"
)


def plain(text: str, limit: int | None = None) -> str:
    """Return `text` as one line that no terminal obeys; what is beyond `limit` characters is left out, with ` ...`."""
    cut = limit is not None and len(text) > limit
    kept = text[:limit] if cut else text
    if not (kept.isascii() and kept.isprintable()):
        kept = _escaped(kept)
    return kept + _ENDS if cut else kept


def plain_lines(text: str, limit: int | None = None) -> str:
    """Return `text` likewise, but with its line breaks: for a place that is bounded by more than a line."""
    cut = limit is not None and len(text) > limit
    lines = (text[:limit] if cut else text).replace("\r\n", "\n").split("\n")
    return "\n".join(plain(line) for line in lines) + (_ENDS if cut else "")


def say(text: str = "", *, to: TextIO | None = None) -> None:
    """Print lines for the caller of a command, to standard output unless `to` names another stream."""
    print(plain_lines(text), file=to or sys.stdout)


def is_plain(text: str) -> bool:
    """Return whether `text` is shown as it is."""
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
