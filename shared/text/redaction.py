"""Remove credentials from every text that leaves the process, in time linear in the text that is kept."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from orcheo_dispatch.shared.text.bare import bare
from orcheo_dispatch.shared.text.secret_forms import pattern_of

MIN_CHARACTERS = 8
"""Shorter secrets are words of every log line: they are found by the rules for URLs and names only."""
_LINE_CHARACTERS = 1000
_MARGIN = 4096
"""Characters behind a cut that are searched as well, so that half a secret is redacted like a whole one."""
_HIDDEN = "***"
# What libraries put around a value: the quotes of Python, JSON, and JSON in JSON, and the `b` of bytes.
_QUOTED = r"b?\\*\"[^\"]*\"?|b?\\*'[^']*'?"
# Each begins with a literal, and no character is read by two starts: linear time.
_RULES = (
    # scheme://user:password@host
    re.compile(r"(?<=[A-Za-z0-9+.\-])://[^\s:@/]*:(?P<secret>[^\s/]+)@"),
    # https://token@host
    re.compile(r"(?i)\bhttps?://(?P<secret>[^\s:@/]+)@"),
    # password=..., "token": ..., ('Authorization', 'Bearer ...')
    re.compile(
        r"(?i)(?:passw(?:or)?d|passphrase|secret|token|cookie|authorization|credentials?|"
        r"(?:api|access|private|encryption|signing|secret)[_-]?key)\b"
        r"(?:\\*['\"])?\s*(?:[=:]|(?<=['\"]),(?=\s*b?['\"]))\s*"
        rf"(?P<secret>{_QUOTED}|(?:bearer\s+|basic\s+)?[^\s,;&'\"]+)"
    ),
    re.compile(r"(?i)\bbearer\s+(?P<secret>[^\s,;'\"\\()]{4,})"),
)
# Base64 in lines of 60 characters and more, as MIME and many tools write it: the separator between two lines.
_LINE_BREAK = re.compile(r"(?=[\\\r\n])(?<=[A-Za-z0-9+/]{60})(?:\\{1,8}r|\r)?(?:\\{1,8}n|\n)(?=[A-Za-z0-9+/])")


@dataclass(frozen=True, slots=True)
class _Known:
    """The secrets of this process, and what finds them."""

    secrets: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None


_known = _Known()


def redact(text: str, limit: int | None = None) -> str:
    """Return `text` with `***` for passwords in URLs, the values of `password=`, `token:` and the like.

    What was given to `keep_secret` is found in every form. Of a text of more than `limit` characters the rest is left
    out, with ` ...` for it.
    """
    window = text if limit is None else text[: limit + _MARGIN]
    end = len(window) if limit is None else min(limit, len(window))
    parts, at = [], 0
    for start, stop in _merged(sorted(_found(window))):
        if start >= end:
            break
        parts += [window[at:start], _HIDDEN]
        at = stop
    parts.append(window[at:end])
    return "".join(parts) + (" ..." if len(text) > end else "")


def error_line(error: BaseException) -> str:
    """Return the first line of a library's error, redacted and of at most 1000 characters, or the error's class."""
    # The cut comes first, the line last: a secret may hold a line break.
    said = redact(str(error).strip(), _LINE_CHARACTERS)
    return said.splitlines()[0] if said else type(error).__name__


def keep_secret(*secrets: str) -> None:
    """Redact these from now on wherever they appear, in any quoting or encoding.

    In place of those of an earlier call. Shorter than 16 characters they are found as words of their own only; what has
    less than 8 is left to the other rules. Of a secret of several lines each line is one.
    """
    _know(frozenset(), secrets)


def add_secrets(*secrets: str) -> None:
    """Redact these as well, as `keep_secret` does."""
    _know(_known.secrets, secrets)


def _know(known: frozenset[str], secrets: tuple[str, ...]) -> None:
    global _known  # noqa: PLW0603 - one process has one set of secrets
    lines = {
        form for secret in secrets for line in (secret, *secret.splitlines()) for form in (line.strip(), bare(line))
    }
    found = known | {line for line in lines if len(line) >= MIN_CHARACTERS}
    # In one assignment: other threads redact meanwhile.
    _known = _Known(found, pattern_of(found))


def _found(text: str) -> Iterator[tuple[int, int]]:
    for rule in _RULES:
        for match in rule.finditer(text):
            yield match.span("secret")
    if (pattern := _known.pattern) is not None:
        for match in pattern.finditer(text):
            yield match.span()
        if breaks := [match.span() for match in _LINE_BREAK.finditer(text)]:
            yield from _found_across(pattern, text, breaks)


def _found_across(pattern: re.Pattern[str], text: str, breaks: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is found in the text without these line breaks, as spans of the text with them."""
    starts = [0, *(stop for _, stop in breaks)]
    stops = [*(start for start, _ in breaks), len(text)]
    lines = list(zip(starts, stops, strict=True))
    begins = [0, *accumulate(stop - start for start, stop in lines)]
    for match in pattern.finditer("".join(text[start:stop] for start, stop in lines)):
        first, last = (bisect_right(begins, at) - 1 for at in (match.start(), match.end() - 1))
        if first != last:
            yield match.start() - begins[first] + starts[first], match.end() - begins[last] + starts[last]


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the spans, those that overlap or touch as one."""
    current: tuple[int, int] | None = None
    for start, stop in spans:
        if current is not None and start <= current[1]:
            current = (current[0], max(current[1], stop))
            continue
        if current is not None:
            yield current
        current = (start, stop)
    if current is not None:
        yield current
