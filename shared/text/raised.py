"""Describe an exception, its class and where it was raised, in bounded time and size whatever its class does.

Workflows raise exceptions of their own classes, whose code is executed by `str(error)` and possibly by reading an
attribute. Here attributes are read from Python's own storage, and foreign code runs on its own thread with a deadline.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Iterator
from types import MemberDescriptorType, TracebackType, WrapperDescriptorType
from typing import Any

_SECONDS = 0.5
"""Time limit for an error's own code to produce its text; after that the text is empty."""
_MOST_CHARACTERS = 100_000
"""Maximum size of a value passed to `repr`; a single text may be longer, since it is cut first."""
_MOST_BITS = 14_000
"""Maximum size of an integer: beyond it `str` raises, or takes quadratic time."""
_MOST_VALUES = 10
_NAME_CHARACTERS = 200
_PLACE_CHARACTERS = 1000

_name_of = type.__dict__["__name__"].__get__
_dict_of = type.__dict__["__dict__"].__get__
_mro_of = type.__dict__["__mro__"].__get__
_flags_of = type.__dict__["__flags__"].__get__
_HEAP_TYPE = 1 << 9
_PRINTS_ARGS = BaseException.__dict__["__str__"]
_TEXTS = frozenset({str, bytes, bytearray})
_CONTAINERS = frozenset({tuple, list, set, frozenset})
_ATOMS = frozenset({type(None), bool, float, complex, type(...), type(NotImplemented)})

_args_of = BaseException.__dict__["args"].__get__
_trace_of = BaseException.__dict__["__traceback__"].__get__


class _TimeIsOver(SystemExit):
    """Ends a thread that has taken too long; a thread that ends with `SystemExit` is not reported."""


def class_name(error: BaseException | None) -> str:
    """Return the name of the error's class, at most 200 characters. Never raises."""
    return str(_name_of(type(error)))[:_NAME_CHARACTERS]


def place_of(trace: TracebackType | None) -> str | None:
    """Return file, line and function of the last frame of a traceback, at most 1000 characters."""
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{code.co_filename[:_PLACE_CHARACTERS]}:{trace.tb_lineno} {code.co_name[:_NAME_CHARACTERS]}"


def trace_of(error: BaseException) -> TracebackType | None:
    """Return the error's traceback without executing code of its class."""
    trace: TracebackType | None = _trace_of(error)
    return trace


def said_by(error: BaseException) -> str:
    """Return `str(error)`, or an empty text if that raises or takes longer than half a second. Never raises.

    Values that take long to print, such as a list of millions, are shown by type and length. Code of the error's class
    is executed on its own thread, which is stopped at its time limit. A C function that holds the GIL cannot be
    stopped, except by ending its process.
    """
    try:
        args: tuple[Any, ...] = _args_of(error)
        method = next(_dict_of(kind)["__str__"] for kind in _mro_of(type(error)) if "__str__" in _dict_of(kind))
        if method is _PRINTS_ARGS and len(args) == 1 and type(args[0]) is str:
            return args[0]
        if type(method) is not WrapperDescriptorType or not _is_of_python(method.__objclass__):
            return _asked(error)
        weights = [_weight(value) for value in (args, *_attributes(error))]
        if None in weights:
            return _asked(error)
        return str(error) if _is_small(*weights) else ", ".join(_shortly(value) for value in args[:_MOST_VALUES])
    except Exception:  # noqa: BLE001 - whatever an object of a workflow does, its run ends
        return ""


def _is_of_python(kind: type) -> bool:
    """Return whether a class is built into the interpreter, not created at run time by a module or a script."""
    return not _flags_of(kind) & _HEAP_TYPE


def _attributes(error: BaseException) -> Iterator[Any]:
    """Yield what Python's own classes print in addition to the arguments, such as the file name of an `OSError`."""
    for kind in filter(_is_of_python, _mro_of(type(error))):
        for member in _dict_of(kind).values():
            if type(member) is MemberDescriptorType:
                with contextlib.suppress(AttributeError):
                    yield member.__get__(error)


def _weight(value: Any) -> int | None:
    """Return the approximate length of `repr(value)`, counted up to a limit; None if it would execute foreign code.

    A value contained several times is counted each time; one that contains itself is counted up to the limit.
    """
    total, left = 0, [iter((value,))]
    while left and total <= _MOST_CHARACTERS:
        each: Any = next(left[-1], left)
        if each is left:
            left.pop()
            continue
        total += 1
        kind = type(each)
        if kind in _TEXTS:
            total += len(each)
        elif kind is int:
            total += each.bit_length() // 3 if each.bit_length() <= _MOST_BITS else _MOST_CHARACTERS
        elif kind is dict:
            left += [iter(each.keys()), iter(each.values())]
        elif kind in _CONTAINERS:
            left.append(iter(each))
        elif kind not in _ATOMS:
            return None
    return total


def _is_small(*weights: int | None) -> bool:
    return all(weight is not None and weight <= _MOST_CHARACTERS for weight in weights)


def _shortly(value: Any) -> str:
    if _is_small(_weight(value)):
        return repr(value)
    if type(value) in _TEXTS:
        return repr(value[:_MOST_CHARACTERS])
    return f"<{type(value).__name__}>" if type(value) is int else f"<{type(value).__name__} of {len(value)}>"


def _asked(error: BaseException) -> str:
    """Return the text that the error's own code produces, unless its time limit ends first."""
    said: list[str] = []

    def ask() -> None:
        # A subclass of `str` would again execute foreign code.
        said.append(str.__str__(str(error)))

    def ask_and_end() -> None:
        # No caller waits for this exception; it is not an error of ours.
        with contextlib.suppress(BaseException):
            ask()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(ask_and_end,), name="error-text", daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive() and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeIsOver))
    return said[0] if said else ""
