"""Find the secrets of a process: secret settings, credentials, and variables with the name of a secret.

Orcheo, workflows and other programs share the environment, which may contain a vault key, bootstrap tokens and keys
of model providers. We do not use them, and must not print them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.credentials import read_credentials
from orcheo_dispatch.shared.text.redaction import MIN_CHARACTERS, add_secrets, keep_secret
from orcheo_dispatch.shared.text.urls import secrets_of_url, split_urls

_NAME = re.compile(
    r"(?:PASSWORDS?|PASSWD|PASSPHRASE|SECRETS?|TOKENS?|API_?KEYS?|CREDENTIALS?|AUTHORIZATION"
    r"|_(?:KEYS?|KEY_ID|PASS|PWD|PAT|JWKS|JWKS_STATIC|COOKIE))$",
    re.IGNORECASE,
)
"""Endings of the names of variables with secrets, including Orcheo's: `ORCHEO_VAULT_ENCRYPTION_KEY`,
`ORCHEO_AUTH_JWT_SECRET`, `ORCHEO_AUTH_BOOTSTRAP_SERVICE_TOKEN`, `ORCHEO_CHATKIT_TOKEN_SIGNING_KEY`, and so on."""
_PUBLIC = re.compile(r"(?:^VITE_|PUBLIC_KEY$)", re.IGNORECASE)
"""Values that are given to browsers, or are one half of a pair."""
_OTHERS = frozenset({"ORCHEO_POSTGRES_DSN", "GITHUB_PAT"})
_OTLP_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?HEADERS", re.IGNORECASE)
"""Headers that a collector requires, usually tokens: `name=value,name=value`, percent-encoded."""
_URL_LISTS = frozenset({"ORCHEO_ALERTS_URLS"})
"""Lists of URLs in which any part may be a secret."""
_URL_PASSWORD = re.compile(r"[A-Za-z0-9+.\-]://(?P<user>[^\s:@/]*):(?P<password>[^\s/]+)@")
_PARAMETER = re.compile(r"\b(?:ssl)?password\s*=\s*(?P<value>'(?:[^'\\]|\\.)*'|[^\s&]+)")
_CONNINFO_SECRETS = ("password", "sslpassword")


def keep_secrets_of(settings: BaseSettings) -> None:
    """Redact from now on the secrets in the settings, in credentials and in the environment of this process."""
    keep_secret(*secrets_of_settings(settings), *_of_process())


def keep_secrets_of_process() -> None:
    """Redact from now on the secrets in credentials and in the environment as well.

    For a process that ends before it has settings.
    """
    add_secrets(*_of_process())


def _of_process() -> list[str]:
    try:
        credentials = read_credentials()
    except SettingsError:
        # The code that uses them reports the error. What could not be read cannot be printed.
        credentials = {}
    return [*secrets_of_environment(), *secrets_of_environment(credentials)]


def secrets_of_settings(settings: BaseSettings) -> list[str]:
    """Return the passwords of all servers and all tokens that the settings hold."""
    found = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            found += _in_urls(text) if field.alias in _URL_LISTS else secrets_in(text)
    return found


def secrets_of_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the values of variables with the name of a secret, and the passwords in all others."""
    return [found for name, value in environment.items() for found in _of_variable(name, value)]


def is_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret."""
    return name in _OTHERS | _URL_LISTS or (_NAME.search(name) is not None and _PUBLIC.search(name) is None)


def secrets_in(text: str) -> list[str]:
    """Return the passwords of a URL or DSN, or `text` itself if it is neither."""
    if "://" not in text and "=" not in text:
        return [text]
    parts = _conninfo(text)
    if parts is None and "://" not in text:
        return [text]
    found = [str(parts[key]) for key in _CONNINFO_SECRETS if parts.get(key)] if parts else []
    return [*found, *_passwords_in(text)]


def _in_urls(text: str) -> list[str]:
    return [found for url in split_urls(text) for found in secrets_of_url(url)]


def _of_variable(name: str, value: str) -> Iterator[str]:
    if name.upper() in _URL_LISTS:
        yield from _in_urls(value)
        return
    if is_secret(name):
        yield from _leaves(value)
    if _OTLP_HEADERS.fullmatch(name):
        yield from (unquote(each.partition("=")[2].strip()) for each in value.split(","))
    if "://" in value or "password" in value:
        yield from _passwords_in(value)


def _leaves(value: str) -> Iterator[str]:
    """Yield the strings in a JSON value; otherwise the value and, if it is comma-separated, its items."""
    if value.lstrip()[:1] in {"{", "["}:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            pass
        else:
            yield from _strings(parsed)
            return
    yield value
    if "," in value:
        yield from value.split(",")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _passwords_in(text: str) -> Iterator[str]:
    for match in _URL_PASSWORD.finditer(text):
        user, password = unquote(match["user"]), unquote(match["password"])
        yield password
        if len(password) < MIN_CHARACTERS:
            # Too short to be searched for alone; `user:password`, as in Basic authentication, may be long enough.
            yield f"{user}:{password}"
    for match in _PARAMETER.finditer(text):
        yield unquote(match["value"].strip("'"))


def _conninfo(text: str) -> dict[str, Any] | None:
    try:
        return conninfo_to_dict(text)
    except ProgrammingError:
        return None
