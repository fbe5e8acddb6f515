"""Strip a value of what an editor, a shell or a file has put around it."""

from __future__ import annotations

# No blanks that anybody meant: a byte order mark, and marks that have no width.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00a0\x00"
_QUOTES = "\"'"


def bare(text: str) -> str:
    """Return `text` without blanks, invisible marks, and one pair of quotes around it."""
    inner = _stripped(text)
    if len(inner) > 1 and inner[0] == inner[-1] and inner[0] in _QUOTES:
        inner = _stripped(inner[1:-1])
    return inner


def _stripped(text: str) -> str:
    before = None
    while before != text:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text
