"""Check the answer that an operator gives to runs that wait at an interrupt."""

from __future__ import annotations

import json
import re

from orcheo_dispatch.shared.errors import SettingsError

# With an odd number of backslashes it is a NUL.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def parse_answer(value: str) -> str:
    """Return the JSON in `value`, checked. Raises `SettingsError` without quoting it: an answer is somebody's input."""
    try:
        # Half a surrogate pair, which Postgres does not store, cannot be encoded.
        json.dumps(json.loads(value, parse_constant=_refuse_constant), ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--json is not valid JSON: {type(error).__name__}") from None
    if _NUL.search(value):
        raise SettingsError("--json is invalid: Postgres stores no \\u0000")
    return value


def _refuse_constant(_: str) -> None:
    """Refuse `NaN` and `Infinity`, which Python takes for JSON and Postgres does not."""
    raise ValueError
