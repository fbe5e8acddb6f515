"""Logging: loguru on stderr, set up once a process.

`shared/log_lines.py` says what a line is, `shared/library_logs.py` what becomes of that which others log.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from shared import library_logs
from shared.log_lines import complete, describe, log, within_run, writer
from shared.redaction import keep_secret
from shared.settings import Settings

__all__ = ["configure", "describe", "log", "within_run"]


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, redacted, in the form that the settings ask for.

    The passwords and the token of the settings are redacted from now on wherever they appear.
    """
    keep_secret(*_secrets(settings))
    log.remove()
    log.configure(patcher=complete)
    write = writer(settings.log_format)
    log.add(write, level=settings.log_level, format="{message}", backtrace=False, diagnose=False, catch=False)
    library_logs.route(settings.log_level)


def _secrets(settings: Settings) -> list[str]:
    """Return the passwords of all servers and the API's token, without those that are not set."""
    dsn = conninfo_to_dict(settings.postgres_dsn.get_secret_value())
    found = [dsn.get("password"), dsn.get("sslpassword")]
    found += [urlsplit(url.get_secret_value()).password for url in (settings.redis_url, settings.slots_redis_url)]
    if settings.service_token is not None:
        found.append(settings.service_token.get_secret_value())
    return [str(each) for each in found if each]
