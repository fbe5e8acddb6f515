"""How a process starts: settings from the environment, and one line instead of a traceback where they are wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from shared.errors import DispatchError
from shared.plain import plain, say
from shared.values import log_level

if TYPE_CHECKING:
    from celery import Celery

    from shared.settings import Settings


def fail(error: DispatchError) -> NoReturn:
    """Print the error, one line for each of its own, without any secret, and exit with its exit code.

    Never waits for long for who reads it.
    """
    from shared.bounded_output import ERRORS
    from shared.redaction import redact
    from shared.secret_names import keep_secrets_of_process

    keep_secrets_of_process()
    sys.stdout.flush()
    for line in redact(str(error)).split("\n"):
        ERRORS.write(sys.stderr, f"orcheo-dispatch: {plain(line)}\n")
    raise SystemExit(error.exit_code)


def unexpected(error: BaseException) -> NoReturn:
    """Print one line for an error that nobody foresaw, its class and its place, and exit with 1.

    At the levels DEBUG and TRACE the traceback comes first, without any secret.
    """
    from shared.log_lines import describe
    from shared.redaction import redact
    from shared.secret_names import keep_secrets_of_process

    if log_level(os.environ.get("ORCHEO_LOG_LEVEL", "")) in {"DEBUG", "TRACE"}:
        keep_secrets_of_process()
        say(redact("".join(traceback.format_exception(error)).rstrip()), to=sys.stderr)
    at = describe(error).get("at", "?")
    say(f"orcheo-dispatch: unexpected {type(error).__name__} at {plain(at)}", to=sys.stderr)
    raise SystemExit(1)


def lazy_app(name: str, module: str, make: Callable[[Settings], Celery]) -> Any:
    """Serve a module's attribute `app` for `celery -A`: made on first use, so that importing reads no environment."""
    if name != "app":
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _made(make)


@cache
def _made(make: Callable[[Settings], Celery]) -> Celery:
    from shared import logs
    from shared.broker_server import refuse_unusable
    from shared.provisions import raise_file_limit, settle_in
    from shared.settings import Settings

    settle_in()
    try:
        settings = Settings.load()
        logs.configure(settings)
        raise_file_limit(settings.concurrency)
        refuse_unusable(settings)
        return make(settings)
    except DispatchError as error:
        fail(error)
