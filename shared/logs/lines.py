"""Format log lines: an event name and its fields, as text or as one JSON object, redacted, on standard error.

The text of an exception may quote a run's inputs, so a line names its class and where it was raised, never its text.

If stderr is systemd's journal, each line begins with its priority, such as `<6>` for INFO: see sd-daemon(3). The
journal removes it and adds its own timestamp, so text lines have none there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from loguru import logger

from orcheo_dispatch.shared.logs.ration import Ration
from orcheo_dispatch.shared.text.bounded_output import ERRORS
from orcheo_dispatch.shared.text.plain import is_plain, plain
from orcheo_dispatch.shared.text.raised import class_name, place_of, trace_of
from orcheo_dispatch.shared.text.redaction import redact

if TYPE_CHECKING:
    from loguru import Message, Record

log = logger
"""`log.info("run_begun", run_id=..., fence=...)`: an event name and its fields."""

FIRST_FIELDS = ("run_id", "workflow_id", "fence")
"""The fields that come first in a line, if it has them."""
_MAX_CHARACTERS = 4000
_LINES_PER_MINUTE = 100
_PRIORITIES = {"TRACE": 7, "DEBUG": 7, "INFO": 6, "SUCCESS": 5, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_JOURNAL = "JOURNAL_STREAM"
_SEPARATOR = re.compile('[ "=]')


@dataclass(slots=True)
class RunInContext:
    """The run whose code is executing; `told` are the streams for which output has been logged once."""

    fields: Mapping[str, Any]
    told: set[str] = field(default_factory=set)
    ration: Ration = field(default_factory=lambda: Ration(lines=_LINES_PER_MINUTE))
    """Rate limit for lines that its code and its libraries log."""


_run: ContextVar[RunInContext | None] = ContextVar("run_of_log_lines", default=None)


@contextlib.contextmanager
def within_run(**fields: Any) -> Iterator[None]:
    """Add the fields of this run to each log line that is written within the block, by any code.

    Tasks and threads that asyncio creates within it inherit them; threads that a workflow creates itself do not.
    """
    token = _run.set(RunInContext(fields))
    try:
        yield
    finally:
        _run.reset(token)


def run_in_context() -> RunInContext | None:
    """Return the run whose code is the caller, or None."""
    return _run.get()


def describe(error: BaseException | None, trace: TracebackType | None = None) -> dict[str, str]:
    """Return the fields that describe `error` without quoting it: its class and where it was raised."""
    if error is not None:
        trace = trace or trace_of(error)
    fields = {"error": class_name(error)}
    if (at := place_of(trace)) is not None:
        fields["at"] = at
    return fields


def _journal_file() -> tuple[int, int] | None:
    """Return device and inode of the file that leads to systemd's journal, from `JOURNAL_STREAM`; None without one."""
    device, _, inode = os.environ.get(_JOURNAL, "").partition(":")
    return (int(device), int(inode)) if device.isdecimal() and inode.isdecimal() else None


def _is_file(stream: IO[str], file: tuple[int, int] | None) -> bool:
    """Return whether `stream` writes to this file, given by device and inode."""
    if file is None:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return file == (found.st_dev, found.st_ino)


def complete(record: Record) -> None:
    """Add the fields of the current run, and redact."""
    extra = record["extra"]
    if (run := _run.get()) is not None:
        for key, value in run.fields.items():
            extra.setdefault(key, value)
    record["message"] = redact(record["message"], _MAX_CHARACTERS)
    for key, value in extra.items():
        extra[key] = _safe(value)


def _safe(value: Any) -> Any:
    """Return a value redacted and limited in size; an object is replaced with its text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(each) for each in value]
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - whatever an object does, its line is written
        text = type(value).__name__
    return redact(text, _MAX_CHARACTERS)


def writer(form: str) -> Callable[[Message], None]:
    """Return a function that writes one record and never raises: a full disk or a closed pipe must not end a run.

    If the reader hangs, lines are dropped after a second.
    """
    journal_is = _journal_file()

    def write(message: Message) -> None:
        stream: IO[str] | None = getattr(sys.stderr, "behind", sys.stderr)
        if stream is None:
            return
        journal = _is_file(stream, journal_is)
        line = _json_line(message.record) if form == "json" else _text_line(message.record, stamped=not journal)
        prefix = f"<{_priority(message.record)}>" if journal else ""
        if dropped := ERRORS.write(stream, f"{prefix}{line}\n"):
            # A sink must not log.
            threading.Thread(target=_say_dropped, args=(dropped,), name="log", daemon=True).start()

    return write


def _say_dropped(lines: int) -> None:
    log.warning("log_lines_dropped", lines=lines)


def _priority(record: Record) -> int:
    return _PRIORITIES.get(record["level"].name, 6)


def _text_line(record: Record, *, stamped: bool) -> str:
    fields = "".join(f" {key}={_field(value)}" for key, value in _ordered(record) if value is not None)
    stamp = f"{_offset_without_colon(record['time'].isoformat(timespec='microseconds'))} " if stamped else ""
    return f"{stamp}{record['level'].name:<7} {plain(record['message'])}{fields}"


def _offset_without_colon(time: str) -> str:
    return time[:-3] + time[-2:]


def _json_line(record: Record) -> str:
    head = {"time": record["time"].isoformat(), "level": record["level"].name, "event": record["message"]}
    # A field cannot replace an entry of the head that has the same name.
    return json.dumps({**head, **{key: value for key, value in _ordered(record) if key not in head}}, default=str)


def _ordered(record: Record) -> list[tuple[str, Any]]:
    extra = record["extra"]
    return [
        *((key, extra[key]) for key in FIRST_FIELDS if key in extra),
        *((key, value) for key, value in extra.items() if key not in FIRST_FIELDS),
    ]


def _field(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    quoted = not is_plain(text) or _SEPARATOR.search(text) is not None
    return json.dumps(text) if quoted else text
