"""Compare the environment of an Orcheo API with what orcheo-dispatch needs, and explain each difference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values

from orcheo_dispatch.shared.errors import DispatchError, SettingsError
from orcheo_dispatch.shared.settings.dispatch import DEFAULT_REDIS_URL
from orcheo_dispatch.shared.settings.model import Settings, secret_variables
from orcheo_dispatch.shared.text.redaction import redact

COMPOSE_OVERRIDE = "compose.orcheo.yml"
_MOST_BYTES = 1024 * 1024
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY\b|CREDENTIAL|DSN")
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|\[?::1\]?")
_FALSE = frozenset({"0", "false", "no", "off"})
_BACKENDS = ("REPOSITORY", "CHECKPOINT", "GRAPH_STORE", "WORKSPACE", "CHATKIT", "VAULT")
# Celery reads these itself, and they override what an application configures.
_CELERYS = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
_NO_EFFECT = {
    "ORCHEO_CELERY_BEAT_SCHEDULE_FILE": "our Beat keeps its schedule in memory",
    "CELERY_BEAT_SCHEDULE_FILE": "our Beat keeps its schedule in memory",
    "CELERY_CONCURRENCY": "ORCHEO_WORKER_CONCURRENCY takes its place",
    "ORCHEO_LEAN_WORKER_CONCURRENCY": "ORCHEO_WORKER_CONCURRENCY takes its place",
    "CELERY_LOG_LEVEL": "ORCHEO_LOG_LEVEL takes its place",
    "REMAP_SIGTERM": "SIGTERM always drains",
}


class Verdict(StrEnum):
    """What to do about a variable."""

    SET = "set"
    CHANGE = "change"
    REMOVE = "remove"
    NOTE = "note"
    """Nothing has to be done."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One variable: what it is, what it should be, and why. No value of a secret is shown."""

    variable: str
    verdict: Verdict
    found: str
    wanted: str
    why: str

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints; these names are stable."""
        return asdict(self)


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file of lines NAME=value, as Docker Compose reads it: quotes, comments, `${NAME}`.

    Raises `SettingsError`, which quotes no content.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SettingsError(f"--env-file {path} cannot be used: it has more than {_MOST_BYTES} bytes")
        found = dotenv_values(path, encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError(f"--env-file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"--env-file {path} cannot be used: it is no text in UTF-8") from None
    return {name: value for name, value in found.items() if value is not None}


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Return the settings that this environment makes. Raises `SettingsError`, a line for each wrong variable."""
    names = {str(field.alias): name for name, field in Settings.model_fields.items()}
    return Settings.load(**{names[key]: value for key, value in environment.items() if key in names and value})


def advise(environment: Mapping[str, str]) -> list[Advice]:
    """Return what has to be done about this environment, in the order in which an operator would do it."""
    given = {name: value.strip() for name, value in environment.items()}
    return [advice for look in _LOOKS for advice in look(given)]


def is_stack(environment: Mapping[str, str]) -> bool:
    """Tell whether this is the `.env` of Orcheo's own compose stack, whose compose file makes the addresses of it."""
    return not environment.get("ORCHEO_POSTGRES_DSN") and bool(environment.get("ORCHEO_POSTGRES_PASSWORD"))


def shown(name: str, value: str | None) -> str:
    """Return a value as it may be printed."""
    if not value:
        return "unset"
    if "://" in value and name != "ORCHEO_POSTGRES_DSN":
        return redact(value)
    return "(not shown)" if _SECRET.search(name) or name in secret_variables() else redact(value)


def _database(given: Mapping[str, str]) -> Iterator[Advice]:
    name = "ORCHEO_POSTGRES_DSN"
    if given.get(name):
        return
    if not is_stack(given):
        yield Advice(name, Verdict.SET, "unset", "Orcheo's database, as its API has it", "runs are claimed there")
    elif re.search(r"[@:/?#%\[\] ]", given["ORCHEO_POSTGRES_PASSWORD"]):
        yield Advice(
            "ORCHEO_POSTGRES_PASSWORD",
            Verdict.CHANGE,
            "(not shown)",
            "letters, digits, - and _",
            "the stack puts it into a URL as it is, and a character in it ends the password there",
        )


def _redis(given: Mapping[str, str]) -> Iterator[Advice]:
    broker, slots = given.get("REDIS_URL"), given.get("ORCHEO_REDIS_URL")
    if is_stack(given) and not slots:
        yield Advice(
            "ORCHEO_REDIS_URL",
            Verdict.NOTE,
            "unset",
            f"set by {COMPOSE_OVERRIDE}, for the API too",
            "without it the API counts run slots in its own memory, where no worker gives one back",
        )
    elif (broker or DEFAULT_REDIS_URL) != (slots or DEFAULT_REDIS_URL):
        yield Advice(
            "ORCHEO_REDIS_URL",
            Verdict.CHANGE if slots else Verdict.SET,
            shown("ORCHEO_REDIS_URL", slots),
            f"{shown('REDIS_URL', broker)}, as REDIS_URL, for the API and for workers",
            "run slots are counted there; counted in one Redis and given back in another, a workspace answers 429",
        )


def _in_process(given: Mapping[str, str]) -> Iterator[Advice]:
    for name, what in (
        ("ORCHEO_INPROCESS_EXECUTION", "the API executes runs inside its own process, in addition to the workers"),
        ("ORCHEO_INPROCESS_CRON", "the API dispatches cron triggers as well"),
    ):
        if given.get(name, "").lower() in _FALSE:
            continue
        by_override = is_stack(given) and not given.get(name)
        yield Advice(
            name,
            Verdict.NOTE if by_override else Verdict.CHANGE if given.get(name) else Verdict.SET,
            shown(name, given.get(name)),
            f"false, set by {COMPOSE_OVERRIDE}" if by_override else "false, for the API",
            f"otherwise {what}",
        )


def _orcheo(given: Mapping[str, str]) -> Iterator[Advice]:
    if not given.get("ORCHEO_VAULT_ENCRYPTION_KEY"):
        yield Advice(
            "ORCHEO_VAULT_ENCRYPTION_KEY",
            Verdict.SET,
            "unset",
            "the API's, for workers",
            "they read credentials with it",
        )
    for name in (f"ORCHEO_{each}_BACKEND" for each in _BACKENDS):
        if given.get(name, "postgres").lower() not in ("postgres", ""):
            yield Advice(name, Verdict.CHANGE, given[name], "postgres", "workers and API share what is kept there")


def _celery(given: Mapping[str, str]) -> Iterator[Advice]:
    for name in _CELERYS:
        if given.get(name):
            yield Advice(
                name, Verdict.REMOVE, shown(name, given[name]), "unset", "Celery takes it in place of REDIS_URL"
            )
    for name, why in _NO_EFFECT.items():
        if given.get(name):
            yield Advice(name, Verdict.NOTE, shown(name, given[name]), "has no effect here", why)


def _loopback(given: Mapping[str, str]) -> Iterator[Advice]:
    for name in ("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL", "ORCHEO_API_URL"):
        value = given.get(name, "")
        if "://" in value and _LOOPBACK.fullmatch(_host(value)):
            yield Advice(
                name,
                Verdict.NOTE,
                f"a server on {_host(value)}",
                "right for processes of this host, and for no container",
                "in a container that is the container itself; name the service instead",
            )


def _ours(given: Mapping[str, str]) -> Iterator[Advice]:
    needed = {} if given.get("ORCHEO_POSTGRES_DSN") else {"ORCHEO_POSTGRES_DSN": "postgresql:///none"}
    try:
        settings_of({**given, **needed})
    except SettingsError as error:
        for line in str(error).splitlines():
            name, wanted = _named(line)
            yield Advice(name, Verdict.CHANGE, shown(name, given.get(name)), wanted, "our processes end with code 2")


def _named(line: str) -> tuple[str, str]:
    """Return the variable that a line of a `SettingsError` begins with, and what is expected of it."""
    name = re.match(r"[A-Z][A-Z0-9_]*", line)
    # From the end: the value, which comes first, may be any text.
    _, found, expected = line.rpartition(": expected ")
    return name.group() if name else "", expected if found else line


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


_LOOKS: tuple[Callable[[Mapping[str, str]], Iterator[Advice]], ...] = (
    _database,
    _redis,
    _in_process,
    _orcheo,
    _celery,
    _ours,
    _loopback,
)


def needs_work(advice: list[Advice]) -> bool:
    """Tell whether something has to be set, changed or removed."""
    return any(each.verdict is not Verdict.NOTE for each in advice)


def cannot_connect(environment: Mapping[str, str]) -> DispatchError | None:
    """Return why what was left behind cannot be looked for with this environment alone, or None."""
    if not environment.get("ORCHEO_POSTGRES_DSN"):
        where = (
            "docker compose exec dispatcher orcheo-dispatch adopt" if is_stack(environment) else "set it, and repeat"
        )
        return SettingsError(f"ORCHEO_POSTGRES_DSN is not set: what was left behind was not looked for; {where}")
    return None
