"""Logging: loguru, an event name and its fields, as text or as one JSON object a line.

Celery's and Orcheo's own logging is routed here too, so that redaction is in one place. The text of
an exception may quote a run's inputs, so a log line names its class and where it was raised, never its text.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

from loguru import logger

from shared.redaction import redact
from shared.settings import Settings

if TYPE_CHECKING:
    from loguru import Record

log = logger
"""`log.info("run_begun", run_id=..., fence=...)`: an event name and its fields."""

# They tell of each message and each tick; what happens to a run is told by us.
_QUIET_LOGGERS = ("celery.beat", "celery.worker.strategy", "celery.app.trace", "kombu", "amqp", "httpx", "httpcore")
# What it warns of is told by our own consumer, once a change of state and without the message's body.
_SILENT_LOGGERS = ("celery.worker.consumer.consumer",)


class _Intercept(logging.Handler):
    """Hands the records of the standard library's logging to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        bound = logger.bind(logger=record.name)
        if record.exc_info and record.exc_info[0]:
            bound = bound.bind(**describe(record.exc_info[1], record.exc_info[2]))
        # The message goes in as an argument: it may hold braces.
        bound.opt(depth=6).log(level, "{}", record.getMessage())


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, redacted, in the form that the settings ask for."""
    logger.remove()
    logger.configure(patcher=_redact_record)
    write = _write_json if settings.log_format == "json" else _write_text
    logger.add(write, level=settings.log_level, format="{message}", backtrace=False, diagnose=False, catch=True)
    logging.basicConfig(handlers=[_Intercept()], level=settings.log_level.replace("TRACE", "DEBUG"), force=True)
    for names, level in ((_QUIET_LOGGERS, logging.WARNING), (_SILENT_LOGGERS, logging.ERROR)):
        for name in names:
            logging.getLogger(name).setLevel(level)


def describe(error: BaseException | None, trace: TracebackType | None = None) -> dict[str, str]:
    """Return the fields that tell of `error` without quoting it: its class and where it was raised."""
    frames = traceback.extract_tb(trace or (error.__traceback__ if error else None))
    fields = {"error": type(error).__name__}
    if frames:
        fields["at"] = f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].name}"
    return fields


def _redact_record(record: Record) -> None:
    record["message"] = redact(record["message"])
    for key, value in record["extra"].items():
        if isinstance(value, str):
            record["extra"][key] = redact(value)


def _write_text(message: Any) -> None:
    record = message.record
    fields = "".join(f" {key}={_field(value)}" for key, value in record["extra"].items() if value is not None)
    stamp = record["time"].strftime("%Y-%m-%dT%H:%M:%S.%f%z")
    text = record["message"].replace("\n", "\\n")
    sys.stderr.write(f"{stamp} {record['level'].name:<7} {text}{fields}\n")
    sys.stderr.flush()


def _write_json(message: Any) -> None:
    record = message.record
    line = {
        "time": record["time"].isoformat(),
        "level": record["level"].name,
        "event": record["message"],
        **record["extra"],
    }
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


def _field(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if any(character in text for character in ' "=\n') else text
