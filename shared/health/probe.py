"""Request the health of a process over HTTP. Imports very little, since containers probe every few seconds."""

from __future__ import annotations

from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

LIVE, READY, METRICS, PAGE = "/livez", "/readyz", "/metrics", "/"
ASSETS, ACTIONS = "/assets/", "/actions/"
"""What the paths of the page's scripts and styles, and of what an operator does there, begin with."""
DEADLINE_SECONDS = 5.0
"""Maximum duration of a connection, however slowly its client reads or writes."""
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


def ask(host: str, port: int, path: str = LIVE, *, timeout: float = DEADLINE_SECONDS) -> tuple[bool, str]:
    """Return whether the process that serves here is healthy, and its answer or why there is none. Never raises."""
    host = without_brackets(host)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where all of them are served
    connection = HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(_MAX_ANSWER_BYTES).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        return False, f"no answer from http://{f'[{host}]' if ':' in host else host}:{port}{path}: {why}"
    finally:
        connection.close()
    return response.status == HTTPStatus.OK, body


def without_brackets(host: str) -> str:
    """Return an address without the brackets that IPv6 has in URLs."""
    return host.removeprefix("[").removesuffix("]")
