"""Keep credentials out of every text that leaves the process."""

from __future__ import annotations

import re

_URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)(?P<user>[^\s:@/]*):(?P<password>[^\s/]+)@")
_NAMED_SECRET = re.compile(
    r"(?i)(?P<name>(?:password|passwd|pgpassword|secret|token|api[_-]?key|authorization)\b['\"]?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:bearer\s+)?[^\s,;&'\"]+)"
)


def redact(text: str) -> str:
    """Return `text` with the passwords of URLs and the values of `password=`, `token:` and the like as `***`."""
    text = _URL_CREDENTIALS.sub(r"\g<scheme>\g<user>:***@", text)
    return _NAMED_SECRET.sub(r"\g<name>***", text)
