"""Requests and answers of the health port as plain values, without a socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

_MAX_PARAMETERS = 16


@dataclass(frozen=True, slots=True)
class Request:
    """A request: its path, and the query after the `?`. Names of headers are in lower case."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Each header once: `repeated` names those of which there were several."""
    repeated: frozenset[str] = frozenset()
    method: str = "GET"
    client: str = ""
    """Address of the client, or of the proxy in front of it."""
    body: bytes = b""
    """Only a POST has one."""

    @classmethod
    def of(
        cls,
        target: str,
        headers: Sequence[tuple[str, str]],
        *,
        method: str = "GET",
        client: str = "",
        body: bytes = b"",
    ) -> Request:
        """Return the request for a target such as `/x?a=b`. Raises `ValueError` for too many parameters."""
        path, _, query = target.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
        counts = Counter(name.lower() for name, _ in headers)
        return cls(
            path,
            parameters,
            {name.lower(): value for name, value in reversed(headers)},
            frozenset(name for name, count in counts.items() if count > 1),
            method,
            # A socket for both families has IPv4 addresses in this form.
            client.removeprefix("::ffff:"),
            body,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of a route."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Answer]
