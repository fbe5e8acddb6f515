"""How a process starts: settings from the environment, and one line instead of a traceback where they are wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from shared.errors import DispatchError

if TYPE_CHECKING:
    from celery import Celery

    from shared.settings import Settings


def fail(error: DispatchError) -> NoReturn:
    """Print the error, a line each, and exit with its exit code."""
    sys.stdout.flush()
    for line in str(error).splitlines():
        print(f"orcheo-dispatch: {line}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def lazy_app(name: str, module: str, make: Callable[[Settings], Celery]) -> Any:
    """Serve a module's attribute `app` for `celery -A`: made on first use, so that importing reads no environment."""
    if name != "app":
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return _made(make)


@cache
def _made(make: Callable[[Settings], Celery]) -> Celery:
    from shared import logs
    from shared.settings import Settings

    try:
        settings = Settings.load()
        logs.configure(settings)
        return make(settings)
    except DispatchError as error:
        fail(error)
