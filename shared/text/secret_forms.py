r"""Build one regular expression that matches a secret in every form in which a program prints it.

A library that quotes a header, a URL or a parameter rarely quotes it unchanged: `repr`, JSON, YAML and C escape a quote
with a backslash, shells and SQL with more quotes, URLs with a percent sign, HTML with an entity; Basic authentication
uses base64, Postgres prints bytes in hexadecimal. Characters are matched one by one, so that forms may be mixed, such
as a percent-encoded password in a JSON text in the `repr` of bytes.

The expressions are unambiguous: a text can be divided among the parts of an expression in only one way, because what
matches a backslash never begins what follows a backslash. So a search takes time linear in the length of the text.
"""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby


@dataclass(frozen=True, slots=True)
class _Form:
    parts: list[str]
    """Expressions that match one after the other."""
    first: str
    """The characters that a match may begin with."""


_WHOLE_WORD_BELOW = 16
"""Secrets shorter than this are matched only as whole words: a password such as `postgres` is part of many words."""
_PIECE = 1020
"""Longer secrets, such as keys in one line, are matched in pieces to keep expressions small. A multiple of 3."""
_MOST_PIECES = 16
"""Maximum number of pieces of a secret that are matched exactly; the rest is matched by its alphabet."""
_REST = r"[A-Za-z0-9+/=_.\-]*"
_MIN_BASE64_BYTES = 6
_NESTED = 6
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a", "\0": "0", "\x1b": "e"} | {
    "\x85": "N",
    "\xa0": "_",
    "\u2028": "L",
    "\u2029": "P",
}
_ENTITIES = {chr(number): name for number, name in html.entities.codepoint2name.items()} | {"'": "apos"}
_QUOTING = "'\"\\"
"""Characters that are treated as equivalent: a shell writes `'"'"'` for `'`, SQL `''`."""
_ALIKE = "-._~"
"""Characters, in addition to letters and digits, that no encoding changes."""
_PERCENT = "%(?:25){0,2}"
# Each level of quoting doubles a backslash.
_BACKSLASH = rf"(?:\\|{_PERCENT}5[cC])"
_AMPERSAND = "&(?:amp;){0,2}"
_QUOTE = (
    rf"""(?:['"]|\\(?:x(?:2[27]|5[cC])|u00(?:2[27]|5[cC])|(?:04[27]|134))?|{_PERCENT}(?:2[27]|5[cC])"""
    rf"|{_AMPERSAND}(?:#0{{0,4}}(?:34|39|92)|#[xX]0{{0,4}}(?:2[27]|5[cC])|quot|apos);)"
)
# A word begins after a character that is no letter or digit, and after the end of an escape, such as the `D` of `%3D`.
_WORD_BEGINS = (
    r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=%25[0-9A-Fa-f]{2})|(?<=%2525[0-9A-Fa-f]{2})|(?<=\\[nrtbfvaeNLP0])"
    r"|(?<=\\[0-7]{3})|(?<=\\x[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4})|(?<=\\U[0-9A-Fa-f]{8}))"
)
_WORD_ENDS = r"(?![A-Za-z0-9])"
# Number of base64 characters that contain bits of the preceding bytes, by the number of such bytes (0 to 2).
_FOREIGN = (0, 2, 3)


def pattern_of(secrets: Collection[str]) -> re.Pattern[str] | None:
    """Return the pattern that finds these secrets in all their forms, the longest first, or None if there are none.

    A search takes time linear in the length of the text.
    """
    if not secrets:
        return None
    anywhere: list[_Form] = []
    words: list[_Form] = []
    encoded: list[_Form] = []
    for secret in sorted(secrets, key=len, reverse=True):
        is_word = len(secret) < _WHOLE_WORD_BELOW
        for piece, rest in _pieces(secret):
            form = _text_form(piece, rest, is_word=is_word)
            (words if is_word and _is_plain(secret[0]) else anywhere).append(form)
            encoded += [*_base64_forms(piece), *_hexadecimal_forms(piece)]
    found = [
        # Most characters begin none of the forms, so a lookahead rejects them once instead of once per form.
        f"(?=[{_firsts(forms)}]){begins}{_either([form.parts for form in forms])}"
        for begins, forms in (("", anywhere + encoded), (_WORD_BEGINS, words))
        if forms
    ]
    return re.compile("|".join(found))


def _firsts(forms: Sequence[_Form]) -> str:
    return re.escape("".join(sorted({character for form in forms for character in form.first})))


def _either(forms: Sequence[Sequence[str]], nested: int = 0) -> str:
    """Return an expression for any of these forms, in which common prefixes are tried only once."""
    if nested == _NESTED:
        return f"(?:{'|'.join(''.join(form) for form in forms)})"
    groups: dict[str, list[Sequence[str]]] = {}
    for form in forms:
        groups.setdefault(form[0] if form else "", []).append(form[1:])
    return f"(?:{'|'.join(first + _after(rests, nested) for first, rests in groups.items())})"


def _after(rests: list[Sequence[str]], nested: int) -> str:
    return "".join(rests[0]) if len(rests) == 1 else _either(rests, nested + 1)


def _pieces(secret: str) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a secret to search for, each with the expression for what may follow it."""
    starts = range(0, max(1, len(secret) - _WHOLE_WORD_BELOW), _PIECE)[:_MOST_PIECES]
    for start in starts:
        # The last piece is longer, so that no piece is as short as a word.
        end = start + _PIECE + (_WHOLE_WORD_BELOW if start == starts[-1] else 0)
        yield secret[start:end], _REST if start == starts[-1] and end < len(secret) else ""


def _text_form(secret: str, rest: str, *, is_word: bool) -> _Form:
    parts, quoted = [], False
    for character, run in groupby(secret, lambda each: _QUOTING[0] if each in _QUOTING else each):
        length = len(list(run))
        if character in _QUOTING:
            # One expression for the whole sequence: otherwise every way to divide it would be tried.
            parts.append(f"{_QUOTE}{{{length},{16 * length + 16}}}")
        else:
            parts += [_character(character, after_quoting=quoted and at == 0) for at in range(length)]
        quoted = character in _QUOTING
    if is_word and _is_plain(secret[-1]):
        parts.append(_WORD_ENDS)
    return _Form([*parts, rest], _first_of(secret[0]))


def _first_of(character: str) -> str:
    if _is_plain(character):
        return character
    return f"{_QUOTING if character in _QUOTING else character}{_as_latin(_bytes(character)[0])}%\\&+"


def _is_plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cache
def _character(character: str, *, after_quoting: bool) -> str:
    """Return the expression for one character: unchanged, percent-encoded, escaped with a backslash, or in HTML.

    After quoting characters, their expression has already matched the backslash before it.
    """
    if _is_plain(character):
        return character
    raw = _bytes(character)
    perhaps, backslashes = ("", "") if after_quoting else (f"{_BACKSLASH}{{0,16}}", f"{_BACKSLASH}{{1,16}}")
    as_is = [re.escape(character)]
    if character not in _ALIKE:
        as_is += _entities(character)
    if character == " ":
        as_is += [r"\+", f"{_PERCENT}2[bB]"]
    escaped, bytewise = _escapes(character), ""
    if len(raw) == 1:
        as_is.append(_percent(raw[0]))
        escaped.append(_byte_escapes(raw[0]))
    else:
        first, *others = raw
        bytewise = f"|{_byte(first, backslashes)}{''.join(_byte(byte, f'{_BACKSLASH}{{1,16}}') for byte in others)}"
    return f"(?:{perhaps}(?:{'|'.join(as_is)})|{backslashes}(?:{'|'.join(escaped)}){bytewise})"


def _entities(character: str) -> Iterator[str]:
    number = ord(character)
    yield f"{_AMPERSAND}#(?:0{{0,4}}{number}|[xX]0{{0,4}}{_hexadecimal(number, 1)});"
    if character in _ENTITIES:
        yield f"{_AMPERSAND}{_ENTITIES[character]};"


def _escapes(character: str) -> list[str]:
    """Return the escapes of a character, without their backslash, in Python, JSON, YAML and C."""
    number, units = ord(character), character.encode("utf-16-be", "surrogatepass")
    high, low = units[:2], units[2:]
    found = [_ESCAPES[character]] if character in _ESCAPES else []
    if 0x7F < number <= 0xFF:
        found.append(f"x{_hexadecimal(number, 2)}")
    if number > 0x7F:
        found.append(
            f"u{_hexadecimal(int.from_bytes(high), 4)}"
            + (f"{_BACKSLASH}{{1,16}}u{_hexadecimal(int.from_bytes(low), 4)}" if low else "")
        )
    if number > 0xFFFF:
        found.append(f"U{_hexadecimal(number, 8)}")
    return found


def _byte(byte: int, backslashes: str) -> str:
    return f"(?:{_percent(byte)}|{re.escape(_as_latin(byte))}|{backslashes}(?:{_byte_escapes(byte)}))"


def _byte_escapes(byte: int) -> str:
    """Return the escapes of a byte, without their backslash; `udc..` if it was decoded with surrogateescape."""
    digits = _hexadecimal(byte, 2)
    return f"x{digits}|u(?:00|[dD][cC]){digits}|{byte:03o}"


def _as_latin(byte: int) -> str:
    return chr(byte)


def _percent(byte: int) -> str:
    return f"{_PERCENT}{_hexadecimal(byte, 2)}"


def _hexadecimal(number: int, digits: int) -> str:
    found = f"{number:0{digits}x}"
    return (
        found if found.isdecimal() else "".join(f"[{each}{each.upper()}]" if each.isalpha() else each for each in found)
    )


def _hexadecimal_forms(secret: str) -> Iterator[_Form]:
    """Yield the expression for the secret in the form in which Postgres prints bytes."""
    digits = _bytes(secret).hex()
    beginning = [_hexadecimal(int(digit, 16), 1) for digit in digits[:8]]
    yield _Form([*beginning, f"(?i:{digits[8:]})"], digits[0] + digits[0].upper())


def _base64_forms(secret: str) -> Iterator[_Form]:
    """Yield an expression for each alignment of the secret in a longer base64 text."""
    raw = _bytes(secret)
    if len(raw) < _MIN_BASE64_BYTES:
        return
    for before, foreign in enumerate(_FOREIGN):
        text = base64.b64encode(bytes(before) + raw).decode()
        whole = (before + len(raw)) * 8 // 6
        body = [_base64_character(character) for character in text[foreign:whole]]
        first = {"+": "+-%", "/": "/_%\\"}.get(text[foreign], text[foreign])
        # The last character may also contain bits of the following byte.
        yield _Form([*body, "[A-Za-z0-9+/_-]?(?:=|%3[dD]){0,2}"], first)


def _base64_character(character: str) -> str:
    if character == "+":
        return r"(?:[+\-]|%2[bB])"
    if character == "/":
        return r"(?:[/_]|%2[fF]|\\/)"
    return character
