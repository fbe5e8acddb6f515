"""The text of a run's error: bounded in time and size whatever the class of the error does, and that of `str` else."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from orcheo_dispatch.shared.logs.lines import describe
from orcheo_dispatch.worker.executor.error_text import MAX_CHARACTERS, error_text

_SECONDS = 3.0
"""Half a second for the text, and a busy machine."""


class _Model(BaseModel):
    number: int


def _invalid() -> BaseException:
    try:
        _Model.model_validate({"number": "x"})
    except ValidationError as error:
        return error
    raise AssertionError


class _Own(Exception):
    def __str__(self) -> str:
        return f"own text of {self.args[0]}"


class _Loud(Exception):
    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    def __str__(self) -> str:
        return self._act()  # type: ignore[no-any-return]

    __repr__ = __str__


class _Text(str):
    def __getitem__(self, _key: Any) -> str:
        raise RuntimeError("sliced")

    def __str__(self) -> str:
        raise RuntimeError("asked")

    def __len__(self) -> int:
        raise RuntimeError("measured")


class _Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("named")

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(f"read {name}")


def _raise(error: BaseException) -> Any:
    raise error


def _spin() -> str:
    while True:
        pass


def _doubled(times: int) -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _with(error: OSError, file: Any) -> BaseException:
    error.filename = file
    return error


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("plain"), ValueError(), ValueError("a", 1, None), ValueError({"a": [1, 2.5, b"x", {3}]})),
        *(KeyError("key"), KeyError(("a", 1)), OSError(2, "No such file", "/x"), RuntimeError("é\n😀"), _Own("it")),
        *(ImportError("no", name="x"), SyntaxError("bad", ("f", 1, 2, "x y")), _invalid(), StopIteration(3)),
        *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"), ExceptionGroup("some", [ValueError("a")])),
        *(json.JSONDecodeError("bad", "{", 1), ValueError(_Own("inside")), ValueError(10**100)),
    ],
    ids=repr,
)
def test_text_of_an_ordinary_error_is_its_own(error: BaseException) -> None:
    assert error_text(error) == (str(error) or type(error).__name__)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: _Loud(_spin), "_Loud"),
        (lambda: _Loud(lambda: threading.Event().wait(60)), "_Loud"),
        (lambda: _Loud(lambda: _raise(SystemExit(1))), "_Loud"),
        (lambda: _Loud(lambda: _raise(KeyboardInterrupt())), "_Loud"),
        (lambda: _Loud(lambda: _raise(ValueError("x" * 10**7))), "_Loud"),
        (lambda: _Loud(lambda: 17), "_Loud"),
        (lambda: _Loud(lambda: str(_Loud(_spin))), "_Loud"),
        (lambda: _Loud(lambda: _Text("fine")), "fine"),
        (lambda: _Loud(lambda: "y" * 10**8), "y" * MAX_CHARACTERS + " ..."),
        (lambda: ValueError("y" * 10**8), "y" * MAX_CHARACTERS + " ..."),
        (lambda: ValueError(_Text("fine")), "ValueError"),
        (lambda: KeyError("y" * 10**8), "'" + "y" * (MAX_CHARACTERS - 1) + " ..."),
        (lambda: ValueError([_Loud(_spin)]), "ValueError"),
        (lambda: ValueError("many", list(range(10**7))), "'many', <list of 10000000>"),
        (lambda: ValueError(*range(10**6)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (lambda: ValueError("doubled", _doubled(40)), "'doubled', <list of 2>"),
        (lambda: ValueError({"x": _doubled(40)}), "<dict of 1>"),
        (lambda: ValueError("circle", _circle()), "'circle', <list of 1>"),
        (lambda: ValueError(10**5000, 1), "<int>, 1"),
        (lambda: _with(OSError(2, "No such file"), _doubled(40)), "2, 'No such file'"),
        (lambda: _with(OSError(2, "No such file"), _Loud(_spin)), "FileNotFoundError"),
        (lambda: ExceptionGroup("group", [ValueError("x" * 10_000)] * 10_000), "group (10000 sub-exceptions)"),
        (lambda: _Meta("Odd", (Exception,), {})("said"), "said"),
        (_Meta("Odd", (Exception,), {}), "Odd"),
        (type("N" * 10**6, (Exception,), {}), "N" * 200),
        (lambda: type("Odd", (Exception,), {"args": property(_raise), "__traceback__": property(_raise)})("x"), "x"),
        (lambda: type("Odd", (Exception,), {"__getattribute__": lambda *_: _raise(SystemExit())})("x"), "x"),
    ],
    ids=range(27),
)
def test_error_takes_bounded_time_and_size_whatever_its_class_does(
    make: Callable[[], BaseException], text: str
) -> None:
    error = make()
    before = time.monotonic()
    assert error_text(error) == text
    fields = describe(error)
    assert time.monotonic() - before < _SECONDS
    assert len(fields["error"]) <= 200
    assert "at" not in fields


def test_thread_that_took_too_long_ends() -> None:
    assert error_text(_Loud(_spin)) == "_Loud"
    for thread in threading.enumerate():
        if thread.name == "error-text" and thread.is_alive():
            thread.join(20)
            # One that waits in C ends when its wait does.
            assert not thread.is_alive() or sys._current_frames()[thread.ident or 0].f_code.co_name == "wait"


def test_chains_notes_and_deep_traces_are_not_followed() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ValueError("deep")

    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    last = first
    for number in range(100_000):
        last.__context__ = last = ValueError(str(number))
    for _ in range(10_000):
        first.add_note("n" * 1000)
    try:
        deep(900)
    except ValueError as error:
        deepest = error
    before = time.monotonic()
    assert [error_text(each) for each in (first, second, deepest)] == ["first", "second", "deep"]
    assert describe(deepest)["at"].endswith(" deep")
    assert len(describe(deepest)["at"]) < 1300
    assert time.monotonic() - before < _SECONDS
    # A chain of so many is taken apart link by link; the interpreter would do it by recursion.
    while first.__context__ is not None:
        first.__context__, first = None, first.__context__  # type: ignore[assignment]
