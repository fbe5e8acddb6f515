"""Interpret the value of an environment variable.

Orcheo and this project share one environment. Its values come from shells, `.env` files, `docker --env-file`,
Kubernetes secrets and Windows editors, and may have trailing line breaks, surrounding quotes or a byte order mark.
A value that Orcheo accepts must not end our processes. Nothing here quotes a value.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.text.bare import bare

LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_NUMBERS = {0: "TRACE", **{getattr(logging, name): name for name in LEVELS[1:]}}
_OTHER_NAMES = {"WARN": "WARNING", "FATAL": "CRITICAL", "NOTSET": "TRACE", "SUCCESS": "INFO"}
CONSOLE, JSON = "console", "json"

_DRIVER = re.compile(r"^(?P<scheme>postgres(?:ql)?)\+\w+(?=://)", re.IGNORECASE)
# Parameters of asyncpg, and of SQLAlchemy with it, that libpq does not know.
_NO_PARAMETERS = frozenset(
    {
        "async_fallback",
        "command_timeout",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "statement_cache_size",
    }
)
_SSL_MODES = {"true": "require", "1": "require", "on": "require", "false": "disable", "0": "disable", "off": "disable"}


def read(variable: str, raw: str) -> str:
    """Return the cleaned value of a variable. Raises `SettingsError`, which does not quote it."""
    try:
        return clean(raw)
    except ValueError as error:
        raise SettingsError(f"{variable} has an invalid value: expected {error}") from None


def clean(text: str) -> str:
    """Return a value without surrounding whitespace, invisible characters, and one pair of quotes.

    Raises `ValueError` if it is not UTF-8 text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("UTF-8 text") from None
    return bare(text)


def log_level(text: str) -> str | None:
    """Return the level for a name or a number of Python's logging, or None if it is neither.

    A number between two levels is rounded up, so that the same records are logged as by Python's logging.
    """
    name = text.strip().upper()
    name = _OTHER_NAMES.get(name, name)
    if name in LEVELS:
        return name
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", name):
        return None
    number = int(name)
    return next((level for least, level in _NUMBERS.items() if number <= least), LEVELS[-1])


def log_format(text: str) -> str | None:
    """Return the log format for a name, or None if it is unknown: Orcheo reads all names but `console` as `json`."""
    return {"text": CONSOLE, CONSOLE: CONSOLE, JSON: JSON}.get(text.strip().lower())


def postgres_dsn(text: str) -> tuple[str, list[str]]:
    """Return a DSN that libpq accepts, and what was changed: SQLAlchemy's driver and asyncpg's parameters.

    A value that cannot be parsed as a URL is returned unchanged.
    """
    changed = []
    dsn = _DRIVER.sub(r"\g<scheme>", text)
    if dsn != text:
        changed.append("the driver after + is ignored: psycopg is used")
    if not re.match(r"postgres(?:ql)?://", dsn, re.IGNORECASE) or "?" not in dsn:
        return dsn, changed
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return dsn, changed
    given = parse_qsl(parts.query, keep_blank_values=True)
    kept = []
    for name, value in given:
        if name in _NO_PARAMETERS:
            changed.append(f"{name} is ignored: libpq has no such parameter")
        elif name == "ssl":
            changed.append("ssl is read as sslmode")
            kept.append(("sslmode", _SSL_MODES.get(value.lower(), value)))
        else:
            kept.append((name, value))
    return (dsn if kept == given else urlunsplit(parts._replace(query=urlencode(kept)))), changed
