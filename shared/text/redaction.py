"""Remove credentials from every text that leaves the process, in time linear in the length of the text that is kept."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from orcheo_dispatch.shared.text.bare import bare
from orcheo_dispatch.shared.text.secret_forms import pattern_of

MIN_CHARACTERS = 8
"""Minimum length of a secret that is searched for: shorter ones occur as words and are left to the rules below."""
_LINE_CHARACTERS = 1000
_MARGIN = 4096
"""Number of characters after a cut that are searched too, so that a secret that the cut splits is redacted."""
_HIDDEN = "***"
# Values as libraries quote them: with the quotes of Python, JSON and nested JSON, and the `b` of bytes.
_QUOTED = r"b?\\*\"[^\"]*\"?|b?\\*'[^']*'?"
# Each begins with a literal, and no character is read from two starting points: linear time.
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
# Each match of a rule, and each line break below, contains one of these; most fields of log lines contain none.
_NEEDED_BY_RULES = re.compile(r"[\s:='\"\\]")
# The line break in base64 with lines of at least 60 characters, as MIME and many tools write it.
_LINE_BREAK = re.compile(r"(?=[\\\r\n])(?<=[A-Za-z0-9+/]{60})(?:\\{1,8}r|\r)?(?:\\{1,8}n|\n)(?=[A-Za-z0-9+/])")


@dataclass(frozen=True, slots=True)
class _Known:
    """The secrets of this process, and the expression that finds them."""

    secrets: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None


_known = _Known()


def redact(text: str, limit: int | None = None) -> str:
    """Return `text` with `***` for passwords in URLs, the values of `password=`, `token:` and the like.

    Secrets given to `keep_secret` are found in every form. A text is cut after `limit` characters, which ` ...` marks.
    """
    if (limit is None or len(text) <= limit) and _is_clean(text):
        return text
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
    """Return the first line of a library's error, redacted and at most 1000 characters long, or the error's class."""
    # Redact before taking the first line: a secret may contain a line break.
    said = redact(str(error).strip(), _LINE_CHARACTERS)
    return said.splitlines()[0] if said else type(error).__name__


def keep_secret(*secrets: str) -> None:
    """Redact these secrets from now on wherever they appear, in any quoting or encoding.

    They replace those of an earlier call. Secrets shorter than 16 characters are found only as whole words; those
    shorter than 8 are left to the other rules. Each line of a multi-line secret also counts as a secret.
    """
    _know(frozenset(), secrets)


def add_secrets(*secrets: str) -> None:
    """Redact these secrets as well, as `keep_secret` does."""
    _know(_known.secrets, secrets)


def _know(known: frozenset[str], secrets: tuple[str, ...]) -> None:
    global _known  # noqa: PLW0603 - one process has one set of secrets
    lines = {
        form for secret in secrets for line in (secret, *secret.splitlines()) for form in (line.strip(), bare(line))
    }
    found = known | {line for line in lines if len(line) >= MIN_CHARACTERS}
    # One assignment, because other threads redact at the same time.
    _known = _Known(found, pattern_of(found))


def _is_clean(text: str) -> bool:
    """Return whether a cheap search shows that nothing in `text` is redacted."""
    known = _known.pattern
    return _NEEDED_BY_RULES.search(text) is None and (known is None or known.search(text) is None)


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
    """Yield the matches in the text without these line breaks, as spans of the text with them."""
    starts = [0, *(stop for _, stop in breaks)]
    stops = [*(start for start, _ in breaks), len(text)]
    lines = list(zip(starts, stops, strict=True))
    begins = [0, *accumulate(stop - start for start, stop in lines)]
    for match in pattern.finditer("".join(text[start:stop] for start, stop in lines)):
        first, last = (bisect_right(begins, at) - 1 for at in (match.start(), match.end() - 1))
        if first != last:
            yield match.start() - begins[first] + starts[first], match.end() - begins[last] + starts[last]


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the spans, merging those that overlap or touch."""
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
