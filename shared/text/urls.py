"""Lists of URLs whose every part may be a secret, as those of ORCHEO_ALERTS_URLS are."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SEPARATOR = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")
_PARTS = re.compile(r"[/?&=@:,;#]+")
_HOST = re.compile(r"^(?:localhost|\[.*\]|[^/?#@]*\.[^/?#@]*)(?::\d+)?$|:\d+$", re.IGNORECASE)


def split_urls(text: str) -> list[str]:
    """Return the URLs of a list that is separated by commas, by spaces, or by both; a comma within a URL is kept."""
    return [part for each in _SEPARATOR.split(text.strip()) if (part := each.strip(", \t\r\n"))]


def is_url(text: str) -> bool:
    """Return whether a text looks like one URL."""
    return _URL.fullmatch(text) is not None


def secrets_of_url(url: str) -> list[str]:
    """Return a URL and its parts, encoded and decoded: services have tokens in any of them, also in place of the host.

    A host that has a dot or a port is left out: it is part of other texts too.
    """
    rest = url.partition("://")[2]
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, host = place.rpartition("@")
    after = rest[len(place) :]
    parts = [*_PARTS.split(user), *_PARTS.split(after)]
    if not _HOST.search(host):
        parts.append(host)
    return list(dict.fromkeys(form for part in (url, *parts) if part for form in (part, unquote(part))))
