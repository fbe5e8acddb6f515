"""Interpret the value of an environment variable.

One environment serves Orcheo and us, and it comes from shells, `.env` files, `docker --env-file`, Kubernetes secrets
and Windows editors: with line breaks at the end, quotes around it, a byte order mark before it. What Orcheo accepts
must not end our processes. Nothing here quotes a value.
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
# Of asyncpg, and of SQLAlchemy with it: libpq knows none of these.
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
    """Return the value of a variable, cleaned. Raises `SettingsError`, which quotes nothing."""
    try:
        return clean(raw)
    except ValueError as error:
        raise SettingsError(f"{variable} has an invalid value: expected {error}") from None


def clean(text: str) -> str:
    """Return a value without blanks, line breaks, invisible marks, and one pair of quotes around it.

    Raises `ValueError` where it is no text in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text in UTF-8") from None
    return bare(text)


def log_level(text: str) -> str | None:
    """Return the level for a name or a number of Python's logging, or None if it is neither.

    A number between two levels is the upper one: what is logged is what logging would let through.
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
    """Return the log format of a name, or None: Orcheo reads every name except `console` as `json`."""
    return {"text": CONSOLE, CONSOLE: CONSOLE, JSON: JSON}.get(text.strip().lower())


def postgres_dsn(text: str) -> tuple[str, list[str]]:
    """Return a DSN as libpq takes it, and what was changed: SQLAlchemy's driver and asyncpg's parameters.

    A value that cannot be parsed as a URL is returned unchanged.
    """
    changed = []
    dsn = _DRIVER.sub(r"\g<scheme>", text)
    if dsn != text:
        changed.append("the driver after + is left out: psycopg connects")
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
            changed.append(f"{name} is left out: libpq has no such parameter")
        elif name == "ssl":
            changed.append("ssl is read as sslmode")
            kept.append(("sslmode", _SSL_MODES.get(value.lower(), value)))
        else:
            kept.append((name, value))
    return (dsn if kept == given else urlunsplit(parts._replace(query=urlencode(kept)))), changed
