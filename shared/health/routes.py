"""Requests and answers of the health port as plain values, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl

_MAX_PARAMETERS = 16


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD: its path, and the query after the `?`. Names of headers are in lower case."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, target: str, headers: Mapping[str, str]) -> Request:
        """Return the request for a target such as `/x?a=b`. Raises `ValueError` for too many parameters."""
        path, _, query = target.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS))
        return cls(path, parameters, {name.lower(): value for name, value in headers.items()})


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of a route."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Answer]
