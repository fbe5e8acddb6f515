"""Decide under which host names the health port answers, so that foreign pages cannot read it (DNS rebinding).

A browser lets a page of `evil.example` read what `evil.example` answers. The owner of that name can make it resolve to
127.0.0.1 a moment later, which only the header `Host` reveals. An IP address cannot be redirected in this way.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from http import HTTPStatus

from orcheo_dispatch.shared.health.routes import Answer, Request, Route

ANY = "*"
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:\[\]/@]+))(?::[0-9]{1,5})?")


def answering_to(
    names: frozenset[str], routes: Mapping[str, Route], *, open_to_all: frozenset[str]
) -> Mapping[str, Route]:
    """Return the routes; all but `open_to_all` answer only requests for an IP address or for one of the names."""
    return {path: route if path in open_to_all else _checked(names, route) for path, route in routes.items()}


def names_of(bound: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """Return the names of this machine, of the address it serves on, and those that the settings allow."""
    own = socket.gethostname()
    return frozenset(_same_form(name) for name in ("localhost", own, own.partition(".")[0], bound, *allowed) if name)


def is_named(host: str, names: frozenset[str]) -> bool:
    """Return whether a header `Host` is an IP address or one of the names; `.example.org` covers its subdomains."""
    found = _HOST.fullmatch(host.strip())
    if ANY in names:
        return True
    if found is None:
        return False
    return _is_address(found["six"] or found["name"]) or _is_among(found["name"] or "", names)


def is_listed(host: str, allowed: tuple[str, ...]) -> bool:
    """Return whether a host is one that the settings name; an address or `*` is none."""
    found = _HOST.fullmatch(host)
    return found is not None and _is_among(found["name"] or "", frozenset(map(_same_form, allowed)))


def _checked(names: frozenset[str], route: Route) -> Route:
    def checked(request: Request) -> Answer:
        host = request.headers.get("host")
        # Without the header the client is no browser: HTTP/1.1 requires it.
        return route(request) if host is None or is_named(host, names) else _misdirected()

    return checked


def _misdirected() -> Answer:
    body = b"421 Misdirected Request. Not served under this name: ORCHEO_HEALTH_ALLOWED_HOSTS takes names of hosts.\n"
    return Answer(body, status=HTTPStatus.MISDIRECTED_REQUEST)


def _is_among(given: str, names: frozenset[str]) -> bool:
    name = _same_form(given)
    parents = name.split(".")
    return name in names or any(f".{'.'.join(parents[at:])}" in names for at in range(1, len(parents)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same_form(name: str) -> str:
    return name.rstrip(".").lower()
