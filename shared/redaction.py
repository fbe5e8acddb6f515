"""Keep credentials out of every text that leaves the process."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)(?P<user>[^\s:@/]*):(?P<password>[^\s/]+)@")
_NAMED_SECRET = re.compile(
    r"(?i)(?P<name>(?:password|passwd|pgpassword|secret|token|api[_-]?key|authorization)\b['\"]?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:bearer\s+)?[^\s,;&'\"]+)"
)
_MIN_CHARACTERS = 8
"""Shorter ones are words of every log line."""
_known: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Return `text` with `***` for the passwords of URLs, the values of `password=`, `token:` and the like.

    What was given to `keep_secret` is found wherever it stands.
    """
    text = _URL_CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text)
    text = _NAMED_SECRET.sub(r"\g<name>***", text)
    return _known.sub("***", text) if _known is not None else text


def keep_secret(*secrets: str) -> None:
    """Redact these from now on wherever they appear as a word of their own, as they are or as a URL writes them.

    In place of those of an earlier call. What is shorter than 8 characters is left to the other rules.
    """
    global _known  # noqa: PLW0603 - one process has one set of secrets
    forms = {form for each in secrets for form in (each, unquote(each), quote(each, safe=""))}
    long = sorted((re.escape(form) for form in forms if len(form) >= _MIN_CHARACTERS), key=len, reverse=True)
    _known = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(long)})(?![A-Za-z0-9])") if long else None
