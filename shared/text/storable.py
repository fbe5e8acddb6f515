"""Recognize text that Postgres cannot store."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """Return whether Postgres can store `text`: it has no NUL and no lone surrogate, which JSON can both express."""
    if text.isascii():
        return "\x00" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
