"""Send one request to Orcheo's API.

Uses `http.client` on purpose: it ignores proxy variables and `.netrc` and follows no redirects, so the token is sent
only to the host that the operator configured. Bodies are never logged.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import Any, Literal
from urllib.parse import urlsplit

from orcheo_dispatch.shared.settings.addresses import Origin

SOCKET_SECONDS = 10.0
"""Socket timeout."""
DEADLINE_SECONDS = 30.0
"""Timeout of a whole request, however slowly the response arrives."""
_MOST_BYTES = 64 * 1024 * 1024

Failure = Literal["unreachable", "malformed"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The API's response, or why there is none."""

    status: int = 0
    body: Any = None
    """The parsed JSON of a successful response; None if it is not JSON."""
    location: str = ""
    """Target of a redirect: scheme, host and port only."""
    retry_after: float | None = None
    """Seconds."""
    failure: Failure | None = None
    reason: str = ""


def ask_api(origin: Origin, path: str, token: str | None, *, deadline: float = DEADLINE_SECONDS) -> Answer:
    """POST to `path` without a body. Never raises; returns soon after `deadline` seconds at the latest."""
    headers = {"Accept": "application/json", "Content-Type": "application/json", "Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = _connection(origin)
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        if (sock := connection.sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline, hang_up)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", origin.path + path, body=b"", headers=headers)
        answer = _read(connection.getresponse())
    except (OSError, HTTPException, ValueError) as error:
        answer = _failed(error)
    finally:
        timer.cancel()
        connection.close()
    if late.is_set():
        return Answer(failure="unreachable", reason=f"no complete answer within {deadline:g} s")
    return answer


def _connection(origin: Origin) -> HTTPConnection:
    if origin.scheme == "https":
        return HTTPSConnection(origin.host, origin.port, timeout=SOCKET_SECONDS, context=ssl.create_default_context())
    return HTTPConnection(origin.host, origin.port, timeout=SOCKET_SECONDS)


def _read(response: HTTPResponse) -> Answer:
    ok = 200 <= response.status < 300
    raw = response.read(_MOST_BYTES + 1) if ok else b""
    if ok and (len(raw) > _MOST_BYTES or (response.length or 0) > 0):
        # `read` with an amount does not raise if the body is shorter than its Content-Length.
        why = "is too long" if len(raw) > _MOST_BYTES else "is incomplete"
        return Answer(response.status, failure="malformed", reason=f"{response.status}, but the answer {why}")
    return Answer(
        response.status,
        body=_json(raw) if ok else None,
        location=_origin_of(response.getheader("Location") or ""),
        retry_after=_seconds(response.getheader("Retry-After"), response.getheader("Date")),
    )


def _failed(error: Exception) -> Answer:
    """Return the answer for an exception. Its text is not used: some exceptions quote headers or response lines."""
    match error:
        case TimeoutError():
            return Answer(failure="unreachable", reason=f"no answer within {SOCKET_SECONDS:g} s")
        case ssl.SSLCertVerificationError():
            return Answer(failure="unreachable", reason=f"its certificate is not valid: {error.verify_message}")
        case ssl.SSLError():
            return Answer(failure="unreachable", reason="it does not speak TLS")
        case RemoteDisconnected():
            return Answer(failure="malformed", reason="it closed the connection without an answer")
        case HTTPException():
            return Answer(failure="malformed", reason=f"the answer is not valid HTTP ({type(error).__name__})")
        case socket.gaierror():
            return Answer(failure="unreachable", reason="the host name cannot be resolved")
        case OSError():
            return Answer(failure="unreachable", reason=error.strerror or type(error).__name__)
    return Answer(failure="malformed", reason=f"the request could not be made ({type(error).__name__})")


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _origin_of(location: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(location)
        if parts.hostname:
            port = f":{parts.port}" if parts.port else ""
            return f"{parts.scheme or 'http'}://{parts.hostname}{port}"[:255]
    return "another path" if location else ""


def _seconds(value: str | None, date: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header; a date is relative to the response's own `Date` header."""
    if not value:
        return None
    with suppress(ValueError, TypeError):
        seconds = float(value)
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    # OverflowError: the year has more digits than a date can hold.
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(date or "")).total_seconds())
    return None
