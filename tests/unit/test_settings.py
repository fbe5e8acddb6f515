"""Settings: read once, and a wrong one is named with its variable, what it got and what it takes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import orcheo
import pytest
from pydantic.fields import FieldInfo

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.environment import notes
from orcheo_dispatch.shared.settings.model import Settings, variables
from orcheo_dispatch.shared.settings.policies import LostRuns
from orcheo_dispatch.shared.settings.surroundings import in_container, is_local

ROOT = Path(__file__).parents[2]
DSN = "postgresql://orcheo:hunter2@db:5432/orcheo"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", DSN)


def test_defaults_are_those_of_the_design() -> None:
    settings = Settings.load()
    assert settings.poll_interval == 1.0
    assert (settings.batch_size, settings.max_queued, settings.queue) == (100, 200, "orcheo.runs")
    assert (settings.lease, settings.lost_runs, settings.max_attempts) == (60, LostRuns.RESUME, 3)
    assert (settings.concurrency, settings.pool, settings.heartbeat, settings.worker_lease) == (32, None, 5, 30)
    assert (settings.isolation, settings.processes, settings.max_processes) == ("adaptive", None, 32)
    assert (settings.run_timeout, settings.drain_timeout, settings.executor) == (3600, 60, "orcheo")
    assert "chatkit" not in settings.triggers
    assert not settings.takes_every_trigger


def test_processes_are_as_many_as_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUAffinity= of a unit and the cpuset of a container limit the number; the cores of the host do not count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    assert Settings.load().shared_processes == 3
    assert Settings.load(processes=2).shared_processes == 2


def test_worker_begins_no_more_runs_than_it_has_processes_where_each_needs_one() -> None:
    assert Settings.load(isolation="process", concurrency=100, max_processes=8).capacity == 8
    assert Settings.load(isolation="process", concurrency=4, max_processes=8).capacity == 4
    assert Settings.load(isolation="adaptive", concurrency=100, max_processes=8).capacity == 100


def test_triggers_are_a_list_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_DISPATCH_TRIGGERS", "webhook, my label ,")
    assert Settings.load().triggers == ("webhook", "my label")
    monkeypatch.setenv("ORCHEO_DISPATCH_TRIGGERS", "*")
    assert Settings.load().takes_every_trigger


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ORCHEO_DISPATCH_POLL_INTERVAL", "soon", "='soon' is invalid: expected a valid number"),
        ("ORCHEO_DISPATCH_POLL_INTERVAL", "0", "='0' is invalid: expected greater than or equal to 0.05"),
        ("ORCHEO_DISPATCH_BATCH_SIZE", "-1", "='-1' is invalid: expected greater than or equal to 1"),
        ("ORCHEO_DISPATCH_LOST_RUNS", "retry", "='retry' is invalid: expected 'resume', 'requeue', 'fail' or 'hold'"),
        ("ORCHEO_WORKER_POOL", "gevent", "='gevent' is invalid: expected 'threads' or 'prefork'"),
        (
            "ORCHEO_WORKER_HEARTBEAT",
            "5s",
            "='5s' is invalid: expected a valid number, such as 5 or 0.5, without a unit",
        ),
        ("ORCHEO_WORKER_RUN_TIMEOUT", "inf", "='inf' is invalid: expected less than or equal to 1000000000"),
        ("ORCHEO_DISPATCH_RETENTION", "3e9", "='3e9' is invalid: expected less than or equal to 1000000000"),
        (
            "ORCHEO_DISPATCH_MAX_RUNNING_PER_WORKFLOW",
            "3000000000",
            "='3000000000' is invalid: expected less than or equal to",
        ),
        (
            "ORCHEO_SERVICE_TOKEN",
            "two words",
            "has an invalid value: expected a token of printable ASCII characters without a space",
        ),
        (
            "ORCHEO_SERVICE_TOKEN",
            "t\nhunter2",
            "has an invalid value: expected a token of printable ASCII characters without a space",
        ),
        (
            "REDIS_URL",
            "redis://:hunter2\n@host:6379/0",
            "has an invalid value: expected an address without line breaks",
        ),
        ("REDIS_URL", "redis://host /0", "has an invalid value: expected an address without spaces"),
        (
            "ORCHEO_POSTGRES_DSN",
            "postgresql://me:hun\tter2@host/db",
            "has an invalid value: expected an address without line",
        ),
        ("ORCHEO_DISPATCH_QUEUE", "redis://me:hunter2@host", "='redis://me:***@host' is invalid: expected"),
        ("ORCHEO_LOG_LEVEL", "DEBUG\udcff", "has an invalid value: expected UTF-8 text"),
        ("ORCHEO_WORKER_LEASE", "6", "=6 is invalid: expected at least twice ORCHEO_WORKER_HEARTBEAT (5)"),
        ("REDIS_URL", "http://me:hunter2@x", "has an invalid value: expected a URL that begins with redis://"),
        (
            "REDIS_URL",
            "redis://:hunter2/x@host:6379/0",
            "has an invalid value: expected a URL with a number for its port",
        ),
        (
            "REDIS_URL",
            "redis://:123/hunter2@host:6379/0",
            "has an invalid value: expected a URL with a number after the host",
        ),
        (
            "REDIS_URL",
            "redis://host/0?socket_timeout=5",
            "has an invalid value: expected a URL without parameters, or rediss://",
        ),
        (
            "REDIS_URL",
            "rediss://host/0?ssl_cert_reqs=1",
            "has an invalid value: expected ssl_cert_reqs=required or optional or",
        ),
        (
            "REDIS_URL",
            "unix://host/redis.sock",
            "has an invalid value: expected a URL such as unix:///run/redis/redis.sock",
        ),
        ("ORCHEO_POSTGRES_DSN", "mysql:hunter2", "has an invalid value: expected a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:x@hunter2@host/db", "has an invalid value: expected a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:x@/hunter2@host/db", "has an invalid value: expected a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:hunter2/x@host/db", "has an invalid value: expected a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "host=host password=x hunter2", "has an invalid value: expected a Postgres DSN"),
    ],
)
def test_wrong_value_is_named_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert str(raised.value).startswith(f"{variable}{'' if says.startswith('=') else ' '}{says}")
    assert "hunter2" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", "redis://host"),
        ("REDIS_URL", "redis://:p%2Fw@[::1]:6379/7"),
        ("REDIS_URL", "rediss://me:pw@host:6380/0?ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.pem"),
        ("REDIS_URL", "unix:///run/redis/redis.sock"),
        ("ORCHEO_POSTGRES_DSN", "postgres://me:p%40w@one:5432,two:5433/db?target_session_attrs=read-write"),
        ("ORCHEO_POSTGRES_DSN", "postgresql:///db?host=/run/postgresql"),
        ("ORCHEO_POSTGRES_DSN", "host=db port=5432 password='with blank' sslmode=verify-full"),
    ],
)
def test_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    settings = Settings.load()
    assert value in {settings.redis_url.get_secret_value(), settings.postgres_dsn.get_secret_value()}


_NUMBERS = [
    field
    for field in Settings.model_fields.values()
    if any(kind in str(field.annotation) for kind in ("int", "float")) and "Secret" not in str(field.annotation)
]


@pytest.mark.parametrize("field", _NUMBERS, ids=lambda field: str(field.alias))
@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e400", "3e9", "9999999999", "-1", "5s", "1 000", "0x10", "٣x"]
)
def test_number_that_no_process_can_use_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, field: FieldInfo, value: str
) -> None:
    monkeypatch.setenv(str(field.alias), value)
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert str(raised.value).startswith(f"{field.alias}={value!r} is invalid: expected ")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("value", [" 5 ", "5\n", "5\r\n", "\ufeff5", '"5"', "' 5 '", "5.0", "+5", "05"])
def test_number_is_taken_in_each_of_its_forms(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for variable in ("ORCHEO_WORKER_HEARTBEAT", "ORCHEO_DISPATCH_MAX_ATTEMPTS"):
        monkeypatch.setenv(variable, value)
    settings = Settings.load()
    assert (settings.heartbeat, settings.max_attempts) == (5, 5)


@pytest.mark.parametrize(
    ("value", "level"),
    [
        *(("info", "INFO"), ("Critical", "CRITICAL"), ("WARN", "WARNING"), ("fatal", "CRITICAL"), ("NOTSET", "TRACE")),
        *(("10", "DEBUG"), ("15", "INFO"), ("0", "TRACE"), ("-1", "TRACE"), ("50", "CRITICAL"), ("99", "CRITICAL")),
        *(("debug\r\n", "DEBUG"), ('"error"', "ERROR"), ("verbose", "INFO"), ("5", "DEBUG"), ("trace", "TRACE")),
    ],
)
def test_level_of_logging_is_taken_as_orcheo_takes_it(monkeypatch: pytest.MonkeyPatch, value: str, level: str) -> None:
    monkeypatch.setenv("ORCHEO_LOG_LEVEL", value)
    assert Settings.load().log_level == level


@pytest.mark.parametrize(
    ("value", "form"),
    [("console", "console"), ("text", "console"), ("JSON", "json"), (" Console\n", "console"), ("xml", "json")],
)
def test_form_of_log_lines_is_taken_as_orcheo_takes_it(monkeypatch: pytest.MonkeyPatch, value: str, form: str) -> None:
    monkeypatch.setenv("ORCHEO_LOG_FORMAT", value)
    assert Settings.load().log_format == form


def test_choices_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_DISPATCH_LOST_RUNS", "Requeue")
    monkeypatch.setenv("ORCHEO_WORKER_POOL", "PREFORK\n")
    settings = Settings.load()
    assert (settings.lost_runs, settings.pool) == (LostRuns.REQUEUE, "prefork")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r", " ", "\t\n", "\u00a0"])
@pytest.mark.parametrize("quote", ["", '"', "'"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "\u200b"])
def test_secrets_and_addresses_are_read_without_what_is_around_them(
    monkeypatch: pytest.MonkeyPatch, end: str, quote: str, mark: str
) -> None:
    values = {
        "ORCHEO_POSTGRES_DSN": DSN,
        "REDIS_URL": "redis://:hunter2@host:6379/0",
        "ORCHEO_SERVICE_TOKEN": "token=",
        "ORCHEO_HEALTH_TOKEN": "a-token-of-16-or-more",
        "ORCHEO_API_URL": "http://api:8000",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, f"{mark}{quote}{value}{quote}{end}")
    settings = Settings.load()
    assert settings.api_url == values.pop("ORCHEO_API_URL")
    secrets = (settings.postgres_dsn, settings.redis_url, settings.service_token, settings.health_token)
    assert [secret.get_secret_value() for secret in secrets if secret] == list(values.values())


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", '""', "''", "\ufeff", ' "" '])
def test_blank_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    without = Settings.load()
    for name in variables():
        if name != "ORCHEO_POSTGRES_DSN":
            monkeypatch.setenv(name, blank)
    assert Settings.load() == without


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgres://me:p%40w@h/db", "postgres://me:p%40w@h/db"),
        ("postgresql+psycopg://me:p%40w@h/db", "postgresql://me:p%40w@h/db"),
        ("postgresql+asyncpg://me:p%40w@h/db?ssl=true", "postgresql://me:p%40w@h/db?sslmode=require"),
        (
            "postgres+psycopg2://h/db?ssl=verify-full&application_name=a",
            "postgres://h/db?sslmode=verify-full&application_name=a",
        ),
        ("postgresql+asyncpg://h/db?prepared_statement_cache_size=0", "postgresql://h/db"),
        ("postgresql://h/db?options=-c%20a%3Db", "postgresql://h/db?options=-c%20a%3Db"),
        ("host=h dbname='d b'", "host=h dbname='d b'"),
    ],
)
def test_dsn_of_sqlalchemy_or_asyncpg_is_taken(monkeypatch: pytest.MonkeyPatch, given: str, taken: str) -> None:
    for name in ("ORCHEO_POSTGRES_DSN", "ORCHEO_DISPATCH_LISTEN_DSN"):
        monkeypatch.setenv(name, given)
    settings = Settings.load()
    assert settings.postgres_dsn.get_secret_value() == taken
    assert settings.listen_dsn is not None
    assert settings.listen_dsn.get_secret_value() == taken


def test_what_is_read_differently_is_noted_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "postgresql+asyncpg://me:hunter2@h/db?statement_cache_size=0\n")
    monkeypatch.setenv("ORCHEO_LOG_FORMAT", "pretty")
    monkeypatch.setenv("ORCHEO_LOG_LEVEL", "loud")
    monkeypatch.setenv("REDIS_URL", '"redis://host"')
    found = notes(variables())
    assert [(note.variable, note.text.split(" ")[0]) for note in found if note.variable != "ORCHEO_REDIS_URL"] == [
        ("ORCHEO_LOG_FORMAT", "neither"),
        ("ORCHEO_LOG_LEVEL", "not"),
        ("ORCHEO_POSTGRES_DSN", "surrounding"),
        ("ORCHEO_POSTGRES_DSN", "the"),
        ("ORCHEO_POSTGRES_DSN", "statement_cache_size"),
        ("REDIS_URL", "surrounding"),
    ]
    assert "hunter2" not in repr(found)
    Settings.load()


_ORCHEO = Path(orcheo.__path__[0])
_SHARED = {
    *("ORCHEO_POSTGRES_DSN", "REDIS_URL", "ORCHEO_REDIS_URL", "ORCHEO_LOG_LEVEL", "ORCHEO_LOG_FORMAT"),
    *("ORCHEO_API_URL", "ORCHEO_SERVICE_TOKEN"),
}


def test_variables_that_orcheo_reads_as_well_are_the_documented_ones() -> None:
    """A release of Orcheo that gives another of our variables a meaning of its own is noticed here."""
    text = "".join(
        path.read_text(encoding="utf-8")
        for name in ("orcheo", "orcheo_backend", "orcheo_sdk")
        for path in (_ORCHEO.parent / name).rglob("*.py")
    )
    # Orcheo's settings leave out the prefix.
    named = {name for name in variables() if f'"{name}"' in text or f'"{name.removeprefix("ORCHEO_")}"' in text}
    assert named - {"ORCHEO_DISPATCH_QUEUE"} == _SHARED
    documented = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", documented, re.MULTILINE)) == _SHARED


def test_nothing_is_noted_of_what_orcheo_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ORCHEO_LOG_FORMAT": "console",
        "ORCHEO_LOG_LEVEL": "info",
        "REDIS_URL": "redis://localhost",
    }.items():
        monkeypatch.setenv(name, value)
    assert notes(variables()) == []


def test_slots_are_returned_at_the_broker_in_a_container_where_nothing_says_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("container", "oci")
    monkeypatch.setenv("REDIS_URL", "redis://redis:6379/3")
    assert Settings.load().slots_redis_url.get_secret_value() == "redis://redis:6379/3"
    assert [note.variable for note in notes(variables())] == ["ORCHEO_REDIS_URL"]
    # On localhost the two are the same host for the API as well.
    monkeypatch.setenv("REDIS_URL", "redis://localhost:6379/3")
    assert Settings.load().slots_redis_url.get_secret_value() == "redis://localhost:6379/0"
    monkeypatch.setenv("REDIS_URL", "redis://redis:6379/3")
    monkeypatch.setenv("ORCHEO_REDIS_URL", "redis://redis:6379/4")
    assert Settings.load().slots_redis_url.get_secret_value() == "redis://redis:6379/4"
    assert notes(variables()) == []


def test_container_is_told_by_its_marks(tmp_path: Path) -> None:
    assert not in_container({}, ())
    assert in_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ())
    assert in_container({}, (str(tmp_path),))


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *(("redis://localhost:6379/0", True), ("redis://127.0.0.9", True), ("rediss://[::1]:1", True)),
        *(("postgresql://me@localhost/db", True), ("host=localhost", True), ("postgresql://a,LOCALHOST./db", True)),
        *(
            ("redis://redis", False),
            ("unix:///run/redis.sock", False),
            ("postgresql:///db", False),
            ("nonsense", False),
        ),
        *(("postgresql://db/localhost", False), ("http://[", False), ("http://app.localhost:8000", True)),
    ],
)
def test_address_on_this_host_is_told(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_WORKER_CONCURRENCY", "many")
    monkeypatch.setenv("ORCHEO_DISPATCH_LEASE", "0")
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert len(str(raised.value).splitlines()) == 2


def test_missing_dsn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHEO_POSTGRES_DSN")
    with pytest.raises(SettingsError, match="ORCHEO_POSTGRES_DSN is not set"):
        Settings.load()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_SERVICE_TOKEN", "t0ken-hunter2")
    assert "hunter2" not in repr(Settings.load())


def test_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_API_URL", "")
    assert Settings.load().api_url is None
