"""Convert the result of a workflow to what Postgres JSONB can store."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

MAX_DEPTH = 250
"""Maximum nesting of containers. pydantic gives up at 255, and the API adds a few levels to what it reads."""

_RECURSIVE = "<recursive>"
_TOO_DEEP = "<too deep>"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# str() and json.dumps() refuse integers above 4300 digits; this many bits stay below that.
_MAX_INT_BITS = 14_000


def storable(value: Any) -> Any:
    """Return `value` as what JSONB accepts; never raises and never calls `repr`.

    The result equals pydantic's `model_dump(mode="json")`, which stock Orcheo writes, if that can be stored. Otherwise
    NaN and infinities become null, U+0000 and lone surrogates become U+FFFD, and values without a JSON form become the
    name of their type. `value` is not changed; text is never cut.
    """
    return _convert(value, 0, set())


def storable_text(text: str) -> str:
    """Return `text` with U+0000 and lone surrogates as U+FFFD; a surrogate pair becomes its character."""
    if not _UNSTORABLE.search(text):
        return str(text)
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "\ufffd")


def _convert(value: Any, depth: int, ancestors: set[int]) -> Any:
    convert_scalar = _SCALARS.get(type(value))
    if convert_scalar is not None:
        return convert_scalar(value)
    if id(value) in ancestors:
        return _RECURSIVE
    if depth > MAX_DEPTH:
        return _TOO_DEEP
    ancestors.add(id(value))
    try:
        return _convert_compound(value, depth + 1, ancestors)
    except Exception:  # noqa: BLE001 - Code of the workflow's own types runs here, and may raise anything.
        return _type_name(value)
    finally:
        ancestors.discard(id(value))


def _convert_compound(value: Any, depth: int, ancestors: set[int]) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): _convert(item, depth, ancestors) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_convert(item, depth, ancestors) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _convert(getattr(value, field.name), depth, ancestors) for field in fields(value)}
    return _convert(_plain(value), depth, ancestors)


def _plain(value: Any) -> Any:
    """Return a simpler form of one value: pydantic's for a datetime, UUID, Decimal, path, URL and so on."""
    if isinstance(value, BaseModel):
        return _dump(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | int | float):
        return str.__str__(value) if isinstance(value, str) else value.real
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if hasattr(value, "__next__"):
        return _type_name(value)  # pydantic would drain the iterator, which may never end.
    return to_jsonable_python(value, by_alias=False, fallback=_type_name)


def _dump(model: BaseModel) -> Any:
    """Return the model's own JSON form, or its attributes if it has none."""
    try:
        # A serialization warning would quote the value in the log.
        return model.model_dump(mode="json", warnings=False, fallback=_type_name)
    except Exception:  # noqa: BLE001 - A broken serializer, or a cycle: convert its attributes one by one.
        return dict(model.__dict__)


def _key(key: Any) -> str:
    if type(key) is str:
        return storable_text(key)
    try:
        return storable_text(str(next(iter(to_jsonable_python({key: None}, by_alias=False)))))
    except Exception:  # noqa: BLE001 - As above: whatever the key's own type raises.
        return _type_name(key)


def _type_name(value: Any) -> str:
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _whole(number: int) -> int | str:
    return number if number.bit_length() <= _MAX_INT_BITS else hex(number)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _same(value: Any) -> Any:
    return value


# Exact types, so that an enum that is a str or an int is converted by its value.
_SCALARS: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    str: storable_text,
    int: _whole,
    float: _finite,
}
