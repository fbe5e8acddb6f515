"""Logging: loguru on stderr, set up once a process.

`shared/log_lines.py` says what a line is, `shared/library_logs.py` what becomes of that which others log.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from shared import library_logs
from shared.log_lines import complete, describe, log, within_run, writer
from shared.redaction import keep_secret
from shared.settings import Settings

__all__ = ["configure", "describe", "log", "within_run"]

_sinks = [0]
"""Where lines go now: at first to the one that loguru comes with."""


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, redacted, in the form that the settings ask for.

    The passwords and the token of the settings are redacted from now on wherever they appear.
    """
    keep_secret(*_secrets(settings))
    log.configure(patcher=complete)
    write = writer(settings.log_format)
    # Celery has us configure once more, while threads of ours log already: none of their lines may be lost.
    added = log.add(write, level=settings.log_level, format="{message}", backtrace=False, diagnose=False, catch=False)
    with suppress(ValueError):
        log.remove(_sinks.pop())
    _sinks.append(added)
    library_logs.route(settings.log_level)


def _secrets(settings: Settings) -> list[str]:
    """Return the passwords of all servers and all tokens that the settings hold."""
    found: list[str | None] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if not isinstance(value, SecretStr):
            continue
        text = value.get_secret_value()
        if name == "postgres_dsn":
            parts = conninfo_to_dict(text)
            found += [str(parts[key]) for key in ("password", "sslpassword") if parts.get(key)]
        else:
            found.append(urlsplit(text).password if "://" in text else text)
    return [each for each in found if each]
