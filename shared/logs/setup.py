"""Set up logging, once per process: loguru on standard error.

`shared/logs/lines.py` defines log lines, `shared/logs/library.py` handles log records of other libraries.
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
"""Where lines go now: at first to the one that loguru comes with."""

_forking: set[int] = set()
"""Threads that fork this process at this moment."""


def _note_fork() -> None:
    _forking.add(threading.get_ident())


def _note_forked() -> None:
    _forking.discard(threading.get_ident())


# Such hooks are called last registered first before a fork, and first registered first after it.
os.register_at_fork(before=_note_fork, after_in_parent=_note_forked, after_in_child=_forking.clear)


def _is_writable(_: Record) -> bool:
    """Tell whether a line can be written: not by a thread that forks, which holds loguru's locks.

    Python 3.12 and later warn of a fork beside other threads before they release them.
    """
    return threading.get_ident() not in _forking


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, redacted, in the form that the settings ask for.

    The secrets of the settings, of credentials and of the environment are redacted from now on wherever they appear.
    """
    keep_secrets_of(settings)
    log.configure(patcher=complete)
    write = writer(settings.log_format)
    # Celery makes us configure again while our threads are logging: none of their lines may be lost.
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
