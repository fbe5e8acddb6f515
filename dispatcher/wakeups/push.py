"""Parse the API's push of a run: the run and its workspace."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from orcheo_dispatch.shared.ledger.model import Push
from orcheo_dispatch.shared.text.storable import is_storable

_WORKSPACE_HEADERS = ("workspace_id", "x-orcheo-workspace-id")
"""The headers that Orcheo's worker reads, in the same order."""

_MAX_CHARACTERS = 200


def read_push(raw: bytes | str) -> Push | None:
    """Return the push in a raw kombu message, or None if no run can be read from it."""
    try:
        message = json.loads(raw)
        args, _, _ = json.loads(_body(message))
        run_id = args[0]
        headers = message["headers"]
        workspace_id = next((headers[name] for name in _WORKSPACE_HEADERS if headers.get(name)), None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not _is_text(run_id):
        return None
    return Push(run_id, workspace_id if _is_text(workspace_id) else None)


def _body(message: Mapping[str, Any]) -> str | bytes:
    body: str = message["body"]
    return base64.b64decode(body) if message["properties"].get("body_encoding") == "base64" else body


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_CHARACTERS and is_storable(value)
