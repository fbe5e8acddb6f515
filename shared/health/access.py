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
    access = _Access(token.get_secret_value())
    asked = {path: route if path in open_to_all else access.asked_before(route) for path, route in routes.items()}
    return {**asked, LOGIN: access.let_in, LOGOUT: access.let_out}


class _Access:
    def __init__(self, token: str) -> None:
        self._bearer = f"Bearer {token}"
        # Derived from the token: valid for every process with the same token, until the token changes.
        self._cookie = hmac.new(token.encode(), _OF_THE_COOKIE, "sha256").hexdigest()

    def asked_before(self, route: Route) -> Route:
        def guarded_route(request: Request) -> Answer:
            return route(request) if self._shows_token(request) or self._shows_cookie(request) else _refused()

        return guarded_route

    def let_in(self, request: Request) -> Answer:
        return _with_cookie(request, self._cookie, COOKIE_SECONDS) if self._shows_token(request) else _refused()

    def let_out(self, request: Request) -> Answer:
        return _with_cookie(request, "", 0)

    def _shows_token(self, request: Request) -> bool:
        return _same(request.headers.get("authorization", ""), self._bearer)

    def _shows_cookie(self, request: Request) -> bool:
        # Not with SimpleCookie, which rejects the whole header if another program's cookie is malformed.
        for cookie in request.headers.get("cookie", "").split(";"):
            name, _, value = cookie.strip().partition("=")
            if name == COOKIE and _same(value, self._cookie):
                return True
        return False


def _same(shown: str, right: str) -> bool:
    """Compare in constant time; as bytes, since comparing non-ASCII text raises."""
    return hmac.compare_digest(shown.encode(errors="replace"), right.encode())


def _refused() -> Answer:
    body = b"401 Unauthorized. Authorization: Bearer takes the token of ORCHEO_HEALTH_TOKEN.\n"
    return Answer(body, status=HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})


def _with_cookie(request: Request, value: str, seconds: int) -> Answer:
    # `Secure` only if the browser connected with TLS: otherwise it would never send the cookie.
    secure = "; Secure" if request.headers.get("x-forwarded-proto", "").lower() == "https" else ""
    cookie = f"{COOKIE}={value}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict{secure}"
    return Answer(b"", status=HTTPStatus.NO_CONTENT, headers={"Set-Cookie": cookie})
