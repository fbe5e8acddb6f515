"""What JSONB can store of what workflows return."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from orcheo_dispatch.worker.executor.payload import MAX_DEPTH, storable, storable_text


class Holder(BaseModel):
    """Stands for Orcheo's `WorkflowRun`: pydantic's form of any value in a field typed as any."""

    value: Any


class Colour(Enum):
    RED = "red"


class Note(BaseModel):
    text: str = Field(alias="Text")
    at: datetime


@dataclass
class Point:
    x: float
    tags: set[str]


class Broken:
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


class BrokenModel(BaseModel):
    kept: str

    def model_dump(self, **_: Any) -> NoReturn:
        raise RuntimeError("no dump")


any_text = st.text(st.characters(exclude_categories=()) | st.sampled_from("\x00\ud83d\ude00"))
plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text
    | st.datetimes(timezones=st.just(UTC))
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from(Colour)
)
pydantic_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(plain_text | st.integers(), inner)
)
wild_values = st.recursive(
    scalars | any_text | st.floats() | st.binary() | st.builds(object) | st.builds(Broken) | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(any_text | st.floats() | st.none() | st.tuples(scalars), inner),
)


@given(pydantic_values)
def test_storable_equals_pydantic_where_that_can_be_stored(value: object) -> None:
    assert storable(value) == Holder(value=value).model_dump(mode="json")["value"]


@given(wild_values)
def test_storable_returns_strict_json_for_any_value(value: object) -> None:
    text = json.dumps(storable(value), allow_nan=False, ensure_ascii=False)
    assert "\x00" not in text
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode("utf-8")


@given(wild_values)
def test_storable_changes_nothing_the_second_time(value: object) -> None:
    once = storable(value)
    assert storable(once) == once


@given(any_text)
def test_storable_text_keeps_every_character_that_can_be_stored(text: str) -> None:
    kept = storable_text(text)
    kept.encode("utf-8")
    assert "\x00" not in kept
    if not any(character == "\x00" or "\ud800" <= character <= "\udfff" for character in text):
        assert kept == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\udc00x", "\ufffdx"),
        ("x\ud83d", "x\ufffd"),
        ("\ud83dA", "\ufffdA"),
        ("\ud83d\ude00", "\U0001f600"),
    ],
)
def test_storable_text_replaces_what_jsonb_refuses(text: str, kept: str) -> None:
    assert storable_text(text) == kept


def test_storable_converts_the_types_that_workflows_return() -> None:
    at = datetime(2026, 11, 23, 2, 35, 1, tzinfo=UTC)
    identity = UUID(int=7)
    value = {
        "note": Note(Text="hi", at=at),
        "point": Point(1.5, {"a"}),
        "path": Path("/srv/x"),
        "took": timedelta(seconds=90),
        "day": date(2026, 11, 23),
        "price": Decimal("1.20"),
        "colour": Colour.RED,
        "raw": b"caf\xc3\xa9",
        identity: at,
        1: None,
    }
    assert storable(value) == {
        "note": {"text": "hi", "at": "2026-11-23T02:35:01Z"},
        "point": {"x": 1.5, "tags": ["a"]},
        "path": "/srv/x",
        "took": "PT1M30S",
        "day": "2026-11-23",
        "price": "1.20",
        "colour": "red",
        "raw": "caf\u00e9",
        str(identity): "2026-11-23T02:35:01Z",
        "1": None,
    }


def test_storable_writes_null_for_numbers_that_json_lacks() -> None:
    assert storable({"nan": math.nan, "inf": [math.inf, -math.inf]}) == {"nan": None, "inf": [None, None]}


def test_storable_writes_the_type_name_of_what_has_no_json_form() -> None:
    assert storable(Broken()) == f"<{__name__}.Broken>"
    assert storable([len, (number for number in range(3))]) == [
        "<builtins.builtin_function_or_method>",
        "<builtins.generator>",
    ]


def test_storable_writes_the_fields_of_a_model_whose_dump_fails() -> None:
    assert storable(BrokenModel(kept="a\x00")) == {"kept": "a\ufffd"}


def test_storable_marks_the_place_where_a_structure_contains_itself() -> None:
    loop: dict[str, Any] = {"name": "loop"}
    loop["self"] = [loop]
    assert storable(loop) == {"name": "loop", "self": ["<recursive>"]}


def test_storable_keeps_an_object_that_occurs_twice() -> None:
    shared = {"a": 1}
    assert storable([shared, shared]) == [shared, shared]


def test_storable_cuts_nesting_where_orcheo_could_not_read_it() -> None:
    value: Any = "deepest"
    for _ in range(20 * MAX_DEPTH):
        value = [value]
    kept = storable(value)
    assert Holder(value=kept).model_dump_json().count("[") == MAX_DEPTH + 1
    assert "<too deep>" in json.dumps(kept)


def test_storable_keeps_integers_that_python_cannot_print_as_hexadecimal() -> None:
    number = 10**5000
    assert storable(number) == hex(number)


def test_storable_keeps_very_large_text() -> None:
    text = "\u00e9" * 5_000_000
    assert storable({"text": text})["text"] is text
