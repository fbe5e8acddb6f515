"""Logging: loguru on stderr, set up once a process.

`shared/log_lines.py` says what a line is, `shared/library_logs.py` what becomes of that which others log.
"""

from __future__ import annotations

from contextlib import suppress

from shared import library_logs
from shared.log_lines import complete, describe, log, within_run, writer
from shared.secret_names import keep_secrets_of
from shared.settings import Settings

__all__ = ["configure", "describe", "log", "within_run"]

_sinks = [0]
"""Where lines go now: at first to the one that loguru comes with."""


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, redacted, in the form that the settings ask for.

    The secrets of the settings, of credentials and of the environment are redacted from now on wherever they appear.
    """
    keep_secrets_of(settings)
    log.configure(patcher=complete)
    write = writer(settings.log_format)
    # Celery has us configure once more, while threads of ours log already: none of their lines may be lost.
    added = log.add(write, level=settings.log_level, format="{message}", backtrace=False, diagnose=False, catch=False)
    with suppress(ValueError):
        log.remove(_sinks.pop())
    _sinks.append(added)
    library_logs.route(settings.log_level)
