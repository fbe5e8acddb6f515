"""Check the URLs and DSNs of servers, without quoting a password in an error.

A password with an unescaped `@`, `/` or space is parsed as part of the host, the port or the path, and from there gets
into error texts that cannot be redacted. So addresses are checked before anything connects. redis-py and kombu parse
URLs differently, disagree about sockets and TLS parameters, and may quote a part of the URL in an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, parse_qs, urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_KOMBU_SOCKET = "redis+socket"
"""What kombu, and so Orcheo's own Celery app, calls the scheme `unix`."""
_SOCKET_DATABASE = {"unix": "db", _KOMBU_SOCKET: "virtual_host"}
_SEVERAL_SERVERS = re.compile(r"^[a-z+]*(sentinel|cluster)[a-z+]*$")
# Parameters that both redis-py and kombu accept; any other makes one of them fail.
_TLS_PARAMETERS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_DATABASE = re.compile(r"(/\d*)?")
_CERT_REQS = ("required", "optional", "none")


def check_redis_url(value: SecretStr) -> SecretStr:
    """Return `value` if it is a valid URL of Redis. Raises `ValueError`, which says what is accepted, not the value."""
    try:
        parts = urlsplit(value.get_secret_value())
        several = _SEVERAL_SERVERS.match(parts.scheme) or ";" in parts.netloc.rpartition("@")[2]
        # Raises ValueError if it is not a number.
        _ = None if several else parts.port
    except ValueError:
        raise ValueError("a URL with a number for its port and a percent-encoded password") from None
    if several:
        raise ValueError(
            "the address of one server: Sentinel and Cluster are not supported; name the primary or a proxy for it"
        )
    if parts.scheme in _SOCKET_DATABASE:
        return _check_socket(value, parts)
    if parts.scheme not in _REDIS_SCHEMES:
        raise ValueError("a URL that begins with " + " or ".join(f"{scheme}://" for scheme in _REDIS_SCHEMES))
    if not _DATABASE.fullmatch(parts.path):
        raise ValueError("a URL with a number after the host, and a percent-encoded password")
    parameters = parse_qs(parts.query, keep_blank_values=True)
    if set(parameters) - set(_TLS_PARAMETERS if parts.scheme == "rediss" else ()):
        raise ValueError("a URL without parameters, or rediss:// with " + ", ".join(_TLS_PARAMETERS))
    if parameters.get("ssl_cert_reqs", ["required"])[0] not in _CERT_REQS:
        raise ValueError("ssl_cert_reqs=" + " or ".join(_CERT_REQS))
    return value


def _check_socket(value: SecretStr, parts: SplitResult) -> SecretStr:
    database = _SOCKET_DATABASE[parts.scheme]
    if parts.hostname or len(parts.path) < 2 or not re.fullmatch(rf"({database}=\d+)?", parts.query):
        raise ValueError(f"a URL such as {parts.scheme}:///run/redis/redis.sock or ...redis.sock?{database}=1")
    return value


def for_kombu(url: str) -> str:
    """Return a checked URL of Redis in kombu's notation."""
    return _socket_as(_KOMBU_SOCKET, url)


def for_client(url: str) -> str:
    """Return a checked URL of Redis in redis-py's notation."""
    return _socket_as("unix", url)


def _socket_as(scheme: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _SOCKET_DATABASE:
        return url
    query = parts.query.replace(f"{_SOCKET_DATABASE[parts.scheme]}=", f"{_SOCKET_DATABASE[scheme]}=")
    # Not with urlunsplit, which drops the slashes of an empty host for schemes that it does not know.
    return f"{scheme}://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")


def check_postgres_dsn(value: SecretStr) -> SecretStr:
    """Return `value` if it is a valid Postgres DSN. Raises `ValueError`, which says what is accepted, not the value."""
    text = value.get_secret_value()
    takes = "a Postgres DSN such as postgresql://user@host:5432/database, with a percent-encoded password"
    try:
        options = conninfo_to_dict(text)
    except ProgrammingError:
        raise ValueError(takes) from None
    ports = str(options.get("port", "0")).replace(",", "")
    if not options or not ports.isdecimal() or any("@" in str(options.get(each, "")) for each in ("host", "dbname")):
        raise ValueError(takes)
    return value


@dataclass(frozen=True, slots=True)
class Origin:
    """The base address of an HTTP API: scheme, host, port and the path that its own paths are appended to."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Parse a URL. Raises `ValueError`, which says what is accepted, not the value."""
        takes = "a URL such as https://orcheo.example.com or http://127.0.0.1:8000"
        try:
            parts = urlsplit(url.strip())
            port = parts.port
        except ValueError:
            raise ValueError(takes) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(takes)
        if parts.username is not None or parts.password is not None or "@" in url:
            raise ValueError(f"{takes}, without user and password (a token belongs in ORCHEO_SERVICE_TOKEN)")
        if parts.query or parts.fragment or not all("!" <= each <= "~" for each in url.strip()):
            raise ValueError(f"{takes}, without parameters, spaces or non-ASCII characters")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"
