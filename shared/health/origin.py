"""Decide whether a request that changes something was made by our own page, and not by a page of another site (CSRF).

Three checks, each enough on its own in a browser of today: what the browser says of the page that asks
(`Sec-Fetch-Site` and `Origin`), a header that a page of another site cannot set without our consent, and in it a value
that only our page can read and that is good for this browser and this user alone.
"""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

from pydantic import SecretStr

from orcheo_dispatch.shared.health.access import cookies_of, make_cookie, same
from orcheo_dispatch.shared.health.hosts import is_listed
from orcheo_dispatch.shared.health.routes import Request

SESSION_COOKIE = "orcheo_dispatch_session"
CSRF_HEADER = "x-csrf-token"
_SESSION_SECONDS = 86_400
_SESSION_CHARACTERS = 43
_OF_THE_KEY = b"orcheo-dispatch csrf"


def from_own_page(request: Request, allowed_hosts: tuple[str, ...]) -> bool:
    """Return whether the browser says that a page of this origin asks, and nothing contradicts it.

    A proxy may ask for another name than the browser did: then that name must be among `allowed_hosts`.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    try:
        origin = urlsplit(request.headers.get("origin", ""))
    except ValueError:
        return False
    if origin.scheme not in {"http", "https"} or not origin.netloc:
        return False
    if origin.netloc.lower() == request.headers.get("host", "").lower():
        return True
    return is_listed(origin.netloc, allowed_hosts)


class Sessions:
    """Gives a browser a session, and its page the value that each action of this session must show."""

    def __init__(self, token: SecretStr | None) -> None:
        # With a token, the sessions are good at each process that has the same; otherwise at this process alone.
        self._key = (
            hmac.digest(token.get_secret_value().encode(), _OF_THE_KEY, "sha256") if token else secrets.token_bytes()
        )

    def begin(self, request: Request, user: str) -> tuple[str, str]:
        """Return the value for the page, and the cookie of its session, which goes on if there is one."""
        session = next(filter(_is_session, cookies_of(request, SESSION_COOKIE)), None) or secrets.token_urlsafe(32)
        return self._value(session, user), make_cookie(request, SESSION_COOKIE, session, _SESSION_SECONDS)

    def admits(self, request: Request, user: str) -> bool:
        """Return whether a request shows the value of its session."""
        shown = request.headers.get(CSRF_HEADER, "")
        sessions = filter(_is_session, cookies_of(request, SESSION_COOKIE))
        return any(same(shown, self._value(session, user)) for session in sessions)

    def _value(self, session: str, user: str) -> str:
        return hmac.new(self._key, f"{session}\n{user}".encode(errors="replace"), "sha256").hexdigest()


def _is_session(value: str) -> bool:
    return len(value) == _SESSION_CHARACTERS
