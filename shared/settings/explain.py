"""Explain an invalid setting in one line: its variable, its value, and what is expected."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from orcheo_dispatch.shared.settings.credentials import read_credentials
from orcheo_dispatch.shared.text.redaction import redact

_EXPECTED = {
    "bool_parsing": "true or false",
    "float_parsing": "a valid number, such as 5 or 0.5, without a unit",
    "int_parsing": "a valid integer, such as 5, without a unit",
}
_SHOWN_CHARACTERS = 100


def explain(item: Any, fields: Mapping[str, FieldInfo], secret: Collection[str]) -> str:
    """Return the line for one pydantic error; values of `secret` variables and of credentials are not quoted."""
    location = item["loc"][0] if item["loc"] else "settings"
    field = fields.get(str(location)) or next((each for each in fields.values() if each.alias == location), None)
    variable = str(getattr(field, "alias", None) or location)
    if item["type"] == "missing":
        return f"{variable} is not set: expected {field.description if field else 'a value'}"
    hidden = variable in secret or (not os.environ.get(variable) and variable in read_credentials())
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = _EXPECTED.get(item["type"], message)
    if hidden:
        return f"{variable} has an invalid value: expected {expected}"
    return f"{variable}={redact(repr(item['input']), _SHOWN_CHARACTERS)} is invalid: expected {expected}"
