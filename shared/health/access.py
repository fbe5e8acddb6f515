"""Decide who may read the health port: everyone or, if a token is set, clients that present it. Probes need none.

A client sends the token as `Authorization: Bearer ...`. A browser sends it once, to `/login`, and gets a cookie that
scripts cannot read. So the token appears in no URL, browser history or proxy log.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import SecretStr

from orcheo_dispatch.shared.health.routes import Answer, Request, Route

LOGIN, LOGOUT = "/login", "/logout"
COOKIE = "orcheo_dispatch"
COOKIE_SECONDS = 604_800
_OF_THE_COOKIE = b"orcheo-dispatch health port"


def guarded(
    routes: Mapping[str, Route], token: SecretStr | None, *, open_to_all: frozenset[str]
) -> Mapping[str, Route]:
    """Return the routes; with a token, all but `open_to_all` require it, and two more let a browser log in and out."""
    if token is None:
        return routes
    access = Access(token)
    asked = {path: route if path in open_to_all else access.asked_before(route) for path, route in routes.items()}
    return {**asked, LOGIN: access.let_in, LOGOUT: access.let_out}


class Access:
    """Knows the token, and the cookie that stands for it."""

    def __init__(self, token: SecretStr) -> None:
        secret = token.get_secret_value()
        self._bearer = f"Bearer {secret}"
        # Derived from the token: valid for every process with the same token, until the token changes.
        self._cookie = hmac.new(secret.encode(), _OF_THE_COOKIE, "sha256").hexdigest()

    def admits(self, request: Request) -> bool:
        """Return whether a request shows the token or the cookie."""
        return self._shows_token(request) or any(same(shown, self._cookie) for shown in cookies_of(request, COOKIE))

    def asked_before(self, route: Route) -> Route:
        """Return the route for those who show the token or the cookie."""
        return lambda request: route(request) if self.admits(request) else _refused()

    def let_in(self, request: Request) -> Answer:
        """Give a browser that shows the token its cookie."""
        return _with_cookie(request, self._cookie, COOKIE_SECONDS) if self._shows_token(request) else _refused()

    def let_out(self, request: Request) -> Answer:
        """Take the cookie back."""
        return _with_cookie(request, "", 0)

    def _shows_token(self, request: Request) -> bool:
        return same(request.headers.get("authorization", ""), self._bearer)


def cookies_of(request: Request, wanted: str) -> list[str]:
    """Return the values of a cookie: a browser sends one for each path that it knows."""
    # Not with SimpleCookie, which rejects the whole header if another program's cookie is malformed.
    pairs = (cookie.strip().partition("=") for cookie in request.headers.get("cookie", "").split(";"))
    return [value for name, _, value in pairs if name == wanted]


def make_cookie(request: Request, name: str, value: str, seconds: int) -> str:
    """Return a cookie that scripts cannot read and that is sent to this site only."""
    # `Secure` only if the browser connected with TLS: otherwise it would never send the cookie.
    secure = "; Secure" if request.headers.get("x-forwarded-proto", "").lower() == "https" else ""
    return f"{name}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict{secure}"


def same(shown: str, right: str) -> bool:
    """Compare in constant time; as bytes, since comparing non-ASCII text raises."""
    return hmac.compare_digest(shown.encode(errors="replace"), right.encode())


def _refused() -> Answer:
    body = b"401 Unauthorized. Authorization: Bearer takes the token of ORCHEO_HEALTH_TOKEN.\n"
    return Answer(body, status=HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})


def _with_cookie(request: Request, value: str, seconds: int) -> Answer:
    cookie = make_cookie(request, COOKIE, value, seconds)
    return Answer(b"", status=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": cookie})
