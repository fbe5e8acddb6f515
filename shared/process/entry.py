"""Start a process: read the settings, and print one line instead of a traceback if they are invalid."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.shared.settings.values import log_level
from orcheo_dispatch.shared.text.plain import plain, say

if TYPE_CHECKING:
    from celery import Celery

    from orcheo_dispatch.shared.settings.model import Settings


def fail(error: DispatchError) -> NoReturn:
    """Print the error's lines, redacted, and exit with its exit code.

    Never waits long for the reader of stderr.
    """
    from orcheo_dispatch.shared.logs.secret_names import keep_secrets_of_process
    from orcheo_dispatch.shared.text.bounded_output import ERRORS
    from orcheo_dispatch.shared.text.redaction import redact

    keep_secrets_of_process()
    sys.stdout.flush()
    for line in redact(str(error)).split("\n"):
        ERRORS.write(sys.stderr, f"orcheo-dispatch: {plain(line)}\n")
    raise SystemExit(error.exit_code)


def unexpected(error: BaseException) -> NoReturn:
    """Print one line with the class and place of an unexpected error, and exit with code 1.

    At levels DEBUG and TRACE, first print the redacted traceback.
    """
    from orcheo_dispatch.shared.logs.lines import describe
    from orcheo_dispatch.shared.logs.secret_names import keep_secrets_of_process
    from orcheo_dispatch.shared.text.redaction import redact

    if log_level(os.environ.get("ORCHEO_LOG_LEVEL", "")) in {"DEBUG", "TRACE"}:
        keep_secrets_of_process()
        say(redact("".join(traceback.format_exception(error)).rstrip()), to=sys.stderr)
    at = describe(error).get("at", "?")
    say(f"orcheo-dispatch: unexpected {type(error).__name__} at {plain(at)}", to=sys.stderr)
    raise SystemExit(1)


def lazy_app(name: str, module: str, make: Callable[[Settings], Celery]) -> Any:
    """Return a module's attribute `app` for `celery -A`, created on first use: importing reads no environment."""
    if name != "app":
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _made(make)


@cache
def _made(make: Callable[[Settings], Celery]) -> Celery:
    from orcheo_dispatch.shared.broker.server import refuse_unusable
    from orcheo_dispatch.shared.logs import setup as logs
    from orcheo_dispatch.shared.process.provisions import raise_file_limit, settle_in
    from orcheo_dispatch.shared.settings.model import Settings

    settle_in()
    try:
        settings = Settings.load()
        logs.configure(settings)
        raise_file_limit(settings.concurrency)
        refuse_unusable(settings)
        return make(settings)
    except DispatchError as error:
        fail(error)
