"""Set up logging, once per process: loguru on standard error.

`shared/logs/lines.py` defines log lines; `shared/logs/library.py` handles log records of other libraries.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from orcheo_dispatch.shared.logs import library as library_logs
from orcheo_dispatch.shared.logs.lines import complete, log, writer
from orcheo_dispatch.shared.logs.secret_names import keep_secrets_of
from orcheo_dispatch.shared.settings.model import Settings

if TYPE_CHECKING:
    from loguru import Record

_sinks = [0]
"""The current sink; at first loguru's default one."""

_forking: set[int] = set()
"""Threads that are forking this process now."""


def _note_fork() -> None:
    _forking.add(threading.get_ident())


def _note_forked() -> None:
    _forking.discard(threading.get_ident())


# `before` hooks are called in reverse order of registration, the other hooks in order of registration.
os.register_at_fork(before=_note_fork, after_in_parent=_note_forked, after_in_child=_forking.clear)


def _is_writable(_: Record) -> bool:
    """Return whether a line can be written: a thread that is forking cannot, since it holds loguru's locks.

    Python 3.12 and later warn about a fork with other threads before those locks are released.
    """
    return threading.get_ident() not in _forking


def configure(settings: Settings) -> None:
    """Write every log line of this process to stderr, redacted, in the configured format.

    Secrets in the settings, in credentials and in the environment are redacted from now on wherever they appear.
    """
    keep_secrets_of(settings)
    log.configure(patcher=complete)
    write = writer(settings.log_format)
    # Celery triggers this again while our threads are logging; adding before removing loses none of their lines.
    added = log.add(
        write,
        level=settings.log_level,
        format="{message}",
        filter=_is_writable,
        backtrace=False,
        diagnose=False,
        catch=False,
    )
    with suppress(ValueError):
        log.remove(_sinks.pop())
    _sinks.append(added)
    library_logs.route(settings.log_level)
