"""The variables that `init` writes: where their defaults come from, and how an answer is read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orcheo_dispatch.ops.adoption.env_advice import read_env_file, settings_of
from orcheo_dispatch.ops.setup.env_text import assignment, read_variables
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings import values
from orcheo_dispatch.shared.settings.dispatch import DEFAULT_REDIS_URL
from orcheo_dispatch.shared.settings.model import Settings, secret_variables, variables
from orcheo_dispatch.shared.text.redaction import redact

DSN, BROKER, SLOTS = "ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL"
INTERVAL, TOKEN = "ORCHEO_DISPATCH_POLL_INTERVAL", "ORCHEO_HEALTH_TOKEN"
VAULT_KEY = "ORCHEO_VAULT_ENCRYPTION_KEY"
ASKED = (DSN, BROKER, SLOTS, INTERVAL, TOKEN)
_BACKENDS = ("REPOSITORY", "CHECKPOINT", "GRAPH_STORE", "WORKSPACE", "CHATKIT", "VAULT")
_OF_WORKERS = (VAULT_KEY, *(f"ORCHEO_{each}_BACKEND" for each in _BACKENDS))
_PER_PROCESS = "ORCHEO_HEALTH_PORT"
"""In a file that all processes read, it would be the same port for all."""
# Accepted by every check of a setting; nothing connects to it.
_ANY_DSN = "postgresql:///orcheo"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known before anything is asked."""

    defaults: Mapping[str, str]
    """Variables that are asked for."""
    carried: Mapping[str, str]
    """Variables that are written without a question."""


def known(target: Path, env_file: Path | None, environment: Mapping[str, str]) -> Known:
    """Return the variables of `env_file`, then of the environment, then of the file that is to be replaced.

    Of the first two, those that our processes and Orcheo's executor read; of the last one, all. Raises `SettingsError`
    for a file that cannot be read, and for an invalid variable that is not asked for.
    """
    wanted = {*variables(), *_OF_WORKERS} - {_PER_PROCESS}
    replaced = read_variables(target) if target.exists() else {}
    given = read_env_file(env_file) if env_file is not None else {}
    found: dict[str, str] = {}
    for source in (given, environment):
        for name in wanted:
            if name not in found and (value := values.read(name, source.get(name, ""))):
                found[name] = value
    found = {**replaced, **found}
    carried = {name: value for name, value in found.items() if name not in ASKED}
    for name, value in carried.items():
        assignment(name, value)
    settings_of({**carried, **_placeholders()})
    return Known({name: found[name] for name in ASKED if found.get(name)}, carried)


def accepted(name: str, text: str) -> str:
    """Return an answer without surrounding spaces and quotes. Raises `SettingsError`, which quotes no secret."""
    answer = values.read(name, text)
    if not answer:
        raise SettingsError(f"{name} is not set")
    settings_of({**_placeholders(), name: answer})
    assignment(name, answer)
    return answer


def shown(name: str, value: str) -> str:
    """Return a value as it may be printed: an address without its password, no other secret."""
    if "://" in value and name in (DSN, BROKER, SLOTS):
        return redact(value)
    secret = name in secret_variables() or name == VAULT_KEY
    return "(not shown)" if secret else redact(value)


def has_password(name: str, address: str) -> bool:
    """Return whether an address holds a password, or is one that takes none: a socket of Redis."""
    if name != DSN:
        parts = urlsplit(address)
        return parts.password is not None or not parts.hostname
    try:
        return bool(conninfo_to_dict(values.postgres_dsn(address)[0]).get("password"))
    except ProgrammingError:
        return False


def with_password(address: str, password: str) -> str:
    """Return an address with a password in it; in a URL it is percent-encoded, so that any character may be in it."""
    if "://" not in address:
        return make_conninfo(address, password=password)
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(password, safe='')}@{host}"))


def default_of(name: str, known: Known, answers: Mapping[str, str]) -> str | None:
    """Return what an empty answer means, or None if the question must be answered."""
    others = {BROKER: DEFAULT_REDIS_URL, SLOTS: answers.get(BROKER), INTERVAL: _interval()}
    return known.defaults.get(name) or others.get(name)


def _interval() -> str:
    return f"{Settings.model_fields['poll_interval'].get_default():g}"


def _placeholders() -> dict[str, str]:
    """Return valid values of what is asked for, so that the environment's own are not read instead."""
    return {DSN: _ANY_DSN, BROKER: DEFAULT_REDIS_URL, SLOTS: DEFAULT_REDIS_URL, INTERVAL: _interval(), TOKEN: "x" * 32}
