r"""A secret in every form in which a program prints it, as one regular expression.

A library that quotes a header, a URL or a parameter rarely quotes it as it is: `repr` and JSON write a backslash before
a quote, URLs a percent sign, HTML an entity, Basic authentication base64. Characters are matched one by one, so
that forms may be mixed, such as a percent-encoded password in a JSON text in the `repr` of bytes.
"""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby

_WHOLE_WORD_BELOW = 16
"""Shorter secrets are matched as words of their own only: a password such as `postgres` is part of many words."""
_LONGEST = 1024
"""Of longer secrets, such as keys in one line, the rest is recognised by its alphabet: expressions stay small."""
_REST = r"[A-Za-z0-9+/=_.\-]*"
_MIN_BASE64_BYTES = 6
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a", "\0": "0", '"': '"', "'": "'"}
_ENTITIES = {chr(number): name for number, name in html.entities.codepoint2name.items()} | {"'": "apos"}
# A backslash is doubled each time that a text is quoted once more.
_BACKSLASHES = r"\\{1,8}"
# A word begins after what is no letter or digit, and after the end of an escape, such as the `D` of `%3D`.
_WORD_BEGINS = (
    r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrtbfva0])|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
)
_WORD_ENDS = r"(?![A-Za-z0-9])"
# Characters of base64 that hold nothing but bits of the bytes before, by how many such bytes there are.
_FOREIGN = (0, 2, 3)


def pattern_of(secrets: set[str]) -> re.Pattern[str] | None:
    """Return what finds these secrets in all their forms, the longest first, or None where there are none.

    Takes time that is linear in the text.
    """
    if not secrets:
        return None
    ordered = sorted(secrets, key=len, reverse=True)
    found = [*(_text_form(each) for each in ordered), *(form for each in ordered for form in _base64_forms(each))]
    # Most characters begin none of them: that is decided once, and not for each of them.
    first = "".join(sorted({character for _, characters in found for character in characters}))
    return re.compile(f"(?=[{re.escape(first)}])(?:{'|'.join(form for form, _ in found)})")


def _text_form(secret: str) -> tuple[str, str]:
    """Return the expression for the secret as a text, and the characters that it may begin with."""
    form = "".join(_run(character, len(list(run))) for character, run in groupby(secret[:_LONGEST]))
    if len(secret) < _WHOLE_WORD_BELOW:
        form = f"{_WORD_BEGINS}{form}{_WORD_ENDS}"
    elif len(secret) > _LONGEST:
        form += _REST
    return form, secret[0] if _is_plain(secret[0]) else f"{secret[0]}%\\&+"


def _run(character: str, length: int) -> str:
    one = _character(character)
    if character == "\\":
        # In one piece: the many ways to divide a row of backslashes among them would each be tried.
        return rf"(?:\\{{{length},{8 * length}}}|{one}{{{length}}})"
    return one if length == 1 else f"{one}{{{length}}}"


def _is_plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


@cache
def _character(character: str) -> str:
    """Return the expression for one character as it is, percent-encoded, escaped with a backslash, or in HTML."""
    if _is_plain(character):
        return character
    number, raw = ord(character), character.encode("utf-8", "surrogatepass")
    forms = [re.escape(character)] if character != "\\" else []
    forms.append("".join(f"%(?:25){{0,2}}{_hexadecimal(byte, 2)}" for byte in raw))
    if character in _ESCAPES:
        forms.append(f"{_BACKSLASHES}{re.escape(_ESCAPES[character])}")
    elif character == "/":
        forms.append(f"{_BACKSLASHES}/")
    forms.append("".join(f"{_BACKSLASHES}x{_hexadecimal(byte, 2)}" for byte in raw))
    if 0x7F < number <= 0xFF:
        forms.append(f"{_BACKSLASHES}x{_hexadecimal(number, 2)}")
    units = character.encode("utf-16-be", "surrogatepass")
    forms.append(
        "".join(f"{_BACKSLASHES}u{_hexadecimal(int.from_bytes(pair), 4)}" for pair in (units[:2], units[2:]) if pair)
    )
    forms.append(f"{_BACKSLASHES}U{_hexadecimal(number, 8)}")
    forms.append(f"&(?:#0{{0,4}}{number}|#[xX]0{{0,4}}{_hexadecimal(number, 1)});")
    if character in _ENTITIES:
        forms.append(f"&{_ENTITIES[character]};")
    if character == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _hexadecimal(number: int, digits: int) -> str:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{number:0{digits}x}")


def _base64_forms(secret: str) -> Iterator[tuple[str, str]]:
    """Yield an expression for each place that the secret can have among others that are encoded with it."""
    raw = secret[:_LONGEST].encode("utf-8", "surrogatepass")
    if len(raw) < _MIN_BASE64_BYTES:
        return
    for before, foreign in enumerate(_FOREIGN):
        text = base64.b64encode(bytes(before) + raw).decode()
        whole = (before + len(raw)) * 8 // 6
        body = "".join(_base64_character(character) for character in text[foreign:whole])
        first = {"+": "+-%", "/": "/_%\\"}.get(text[foreign], text[foreign])
        # The last character may hold bits of what follows as well.
        yield f"{body}[A-Za-z0-9+/_-]?(?:=|%3[dD]){{0,2}}", first


def _base64_character(character: str) -> str:
    if character == "+":
        return r"(?:[+\-]|%2[bB])"
    if character == "/":
        return r"(?:[/_]|%2[fF]|\\/)"
    return character
