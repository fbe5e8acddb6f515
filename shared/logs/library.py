"""Route what libraries log, warn, print or raise to our log lines, without text that may quote a run.

Only libraries whose log lines are known are quoted. For Orcheo's own log lines only the template is shown, not its
arguments, because a node may log its state. For all others, such as a workflow's own loggers, a line shows the logger,
the place and the level, but not the text.

The `InterceptHandler` of loguru's documentation passes on every text, so it is not used.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

from orcheo_dispatch.shared.logs.lines import describe, log, run_in_context

# The text of these is shown. Their lines that may quote a value are filtered by level.
_QUOTED = ("celery", "kombu", "amqp", "redis", "psycopg", "sqlalchemy", "alembic")
# The template of these is shown, without its arguments.
_TEMPLATES = ("orcheo", "orcheo_backend", "asyncio", "concurrent")
# They log each message, tick, statement and row; our own events cover what happens to a run.
_QUIET = (
    "celery.app.trace",
    "celery.beat",
    "celery.pool",
    "celery.worker.strategy",
    "kombu",
    "amqp",
    "redis",
    "psycopg",
    "sqlalchemy",
    "alembic",
)
# Our own consumer logs what it warns of, once per change of state and without the message's body.
_SILENT = {"celery.worker.consumer.consumer": logging.ERROR}
# Its text quotes exceptions and arguments of tasks.
_UNQUOTED = "celery.app.trace"

_WARNING = re.compile(r"(?P<at>.+?:\d+): (?P<category>\w+): ")
"""How a Python warning begins; what follows may quote a value, as pydantic's do."""

_level: int | None = None


def route(level: str) -> None:
    """Route the standard library's logging, warnings and uncaught exceptions to our log, at `level` and above."""
    global _level  # noqa: PLW0603 - logging is global, and so is where it goes
    _level = getattr(logging, level.replace("TRACE", "DEBUG"))
    _route(_level)
    sys.excepthook = _process_failed
    threading.excepthook = _thread_failed
    sys.unraisablehook = _not_raised
    # Celery does so too.
    logging.captureWarnings(True)


def route_again() -> None:
    """Restore our configuration of the standard library's logging after Orcheo's import or a workflow changed it.

    Does nothing if it is unchanged, or in a process whose logging is not ours.
    """
    if _level is None or [type(each) for each in logging.getLogger().handlers] == [_Intercept]:
        return
    _route(_level)


def _route(level: int) -> None:
    # The text of unknown libraries is not shown, so nothing below a warning is worth a line.
    logging.basicConfig(handlers=[_Intercept()], level=max(level, logging.WARNING), force=True)
    for name in (*_QUOTED, "orcheo", "orcheo_backend"):
        logging.getLogger(name).setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name, least in _SILENT.items():
        logging.getLogger(name).setLevel(least)


class _Intercept(logging.Handler):
    """Passes records of the standard library's logging to loguru, within the rate limit of the run that logs them."""

    def emit(self, record: logging.LogRecord) -> None:
        run = run_in_context()
        left_out = run.ration.take() if run is not None else {}
        if left_out is None:
            return
        if record.name == "py.warnings" and (warned := _WARNING.match(record.getMessage())):
            log.warning("python_warned", **warned.groupdict(), **left_out)
            return
        fields: dict[str, Any] = {"logger": record.name, **left_out}
        if (text := _text_of(record)) is not None:
            fields["text"] = text
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe(record.exc_info[1], record.exc_info[2])
        elif text is None:
            fields["at"] = f"{record.pathname}:{record.lineno} {record.funcName}"
        log.log(_level_of(record), "logged", **fields)


def _level_of(record: logging.LogRecord) -> str | int:
    try:
        return log.level(record.levelname).name
    except ValueError:
        return record.levelno


def _text_of(record: logging.LogRecord) -> str | None:
    root = record.name.partition(".")[0]
    if root in _QUOTED and record.name != _UNQUOTED:
        try:
            return record.getMessage()
        except Exception:  # noqa: BLE001 - a library's template and its arguments may not fit
            return str(record.msg)
    if root in _TEMPLATES and isinstance(record.msg, str):
        # The first line of asyncio's text says what happened; the others quote tasks and exceptions.
        return record.msg.partition("\n")[0]
    return None


def _process_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical("process_failed", **describe(error, trace))


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if issubclass(failed.exc_type, SystemExit):
        return
    name = failed.thread.name if failed.thread is not None else None
    log.error("thread_failed", thread=name, **describe(failed.exc_value, failed.exc_traceback))


def _not_raised(failed: sys.UnraisableHookArgs) -> None:
    log.warning("exception_ignored", **describe(failed.exc_value, failed.exc_traceback))


class _NoPrints:
    """Replaces stdout or stderr in a process that executes runs, to discard what their code prints.

    The main thread executes no run: its output comes from Celery, or from our own last lines.
    """

    def __init__(self, behind: TextIO, name: str) -> None:
        self.behind = behind
        self._name = name
        self._told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)

    def write(self, text: str) -> int:
        """Write the output of the main thread; otherwise log, once per run, that something was printed."""
        if threading.current_thread() is threading.main_thread() and run_in_context() is None:
            return self.behind.write(text)
        self._tell()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each line."""
        for each in lines:
            self.write(each)

    def _tell(self) -> None:
        run = run_in_context()
        told = self._name in run.told if run is not None else self._told
        if told:
            return
        if run is not None:
            run.told.add(self._name)
        else:
            self._told = True
        log.info("print_dropped", stream=self._name)


def drop_prints() -> None:
    """Discard what the code of runs prints, so that the service manager does not log it."""
    if not isinstance(sys.stdout, _NoPrints):
        sys.stdout = _NoPrints(sys.stdout, "stdout")
        sys.stderr = _NoPrints(sys.stderr, "stderr")
