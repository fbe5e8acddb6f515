"""Answers of the page's routes: JSON, and the headers that all of them have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from orcheo_dispatch.shared.health.routes import Answer

# The page itself allows its own style, script and requests.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def json_answer(body: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK, **headers: str) -> Answer:
    """Return an answer; names of headers have `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    text = json.dumps(body, default=_plain)
    return Answer(text.encode(), "application/json", status, headers={**HEADERS, **named})


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
