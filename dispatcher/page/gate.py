"""Decide who may act on the status page."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from http import HTTPStatus

from orcheo_dispatch.shared.health.access import Access
from orcheo_dispatch.shared.health.hosts import is_named, names_of
from orcheo_dispatch.shared.health.origin import Sessions, from_own_page
from orcheo_dispatch.shared.health.routes import Request
from orcheo_dispatch.shared.settings.model import Settings

_LONGEST_USER = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an attempt is refused: one line that quotes nothing of the request."""

    status: HTTPStatus
    because: str


OFF = Refusal(HTTPStatus.FORBIDDEN, "Actions are off: ORCHEO_PAGE_ACTIONS.")
METHOD = Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "An action takes POST.")
HOST = Refusal(HTTPStatus.MISDIRECTED_REQUEST, "Not served under this host name: ORCHEO_HEALTH_ALLOWED_HOSTS.")
TOKEN = Refusal(HTTPStatus.UNAUTHORIZED, "The token is missing or wrong: ORCHEO_HEALTH_TOKEN.")
USER = Refusal(HTTPStatus.FORBIDDEN, "The proxy names no user: ORCHEO_PAGE_USER_HEADER.")
PROXY = Refusal(HTTPStatus.FORBIDDEN, "The request does not come from a proxy of ORCHEO_PAGE_PROXIES.")
ORIGIN = Refusal(HTTPStatus.FORBIDDEN, "The request was not made by this page: its origin is another one or missing.")
CSRF = Refusal(HTTPStatus.FORBIDDEN, "The header X-CSRF-Token is missing or wrong.")
CONTENT_TYPE = Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")


class Gate:
    """Knows the token, the header of the user, and the sessions of browsers.

    A token that is set is always required, and so is a header of the user that is set: with both, the token shows that
    the proxy is the right one, and the header says who asks.
    """

    def __init__(self, settings: Settings) -> None:
        self.on = settings.page_actions
        self.sessions = Sessions(settings.health_token)
        self._access = Access(settings.health_token) if settings.health_token else None
        self._header = (settings.page_user_header or "").lower()
        self._proxies = [ipaddress.ip_network(each) for each in settings.page_proxies]
        self._names = names_of(settings.health_host, settings.health_allowed_hosts)
        self._allowed_hosts = settings.health_allowed_hosts

    def admit(self, request: Request) -> str | Refusal:
        """Return who may do what this request asks for, or why nobody may."""
        if request.method != "POST":
            return METHOD
        if not is_named(request.headers.get("host", ""), self._names):
            return HOST
        user = self.user_of(request)
        if isinstance(user, Refusal):
            return user
        if not from_own_page(request, self._allowed_hosts):
            return ORIGIN
        if not self.sessions.admits(request, user):
            return CSRF
        content_type = request.headers.get("content-type", "").partition(";")[0]
        return user if content_type.strip().lower() == "application/json" else CONTENT_TYPE

    def user_of(self, request: Request) -> str | Refusal:
        """Return who asks: the user that the proxy names, otherwise the bearer of the token at an address."""
        if not self.on:
            return OFF
        if self._access is not None and not self._access.admits(request):
            return TOKEN
        if self._header:
            return self._named_user(request)
        # Without a token and without a header the settings are invalid, but no attempt may depend on that.
        return TOKEN if self._access is None else f"token {request.client}"

    def _named_user(self, request: Request) -> str | Refusal:
        if not self._from_proxy(request.client):
            return PROXY
        if self._header in request.repeated:
            return USER
        # Headers arrive as Latin-1; names that are not ASCII are sent as UTF-8.
        name = request.headers.get(self._header, "").encode("latin-1", "replace").decode("utf-8", "replace").strip()
        return name if 0 < len(name) <= _LONGEST_USER else USER

    def _from_proxy(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._proxies)
