"""Strip what an editor, a shell or a file has put around a value."""

from __future__ import annotations

# Never intended: a byte order mark, and characters of zero width.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00a0\x00"
_QUOTES = "\"'"


def bare(text: str) -> str:
    """Return `text` without surrounding whitespace, invisible characters, and one pair of quotes."""
    inner = _stripped(text)
    if len(inner) > 1 and inner[0] == inner[-1] and inner[0] in _QUOTES:
        inner = _stripped(inner[1:-1])
    return inner


def _stripped(text: str) -> str:
    before = None
    while before != text:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text
