"""Settings: read once, and a wrong one is named with its variable, what it got and what it takes."""

from __future__ import annotations

import pytest

from shared.errors import SettingsError
from shared.settings import LostRuns, Settings, variables

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
    assert (settings.lease, settings.lost_runs, settings.max_attempts) == (60, LostRuns.FAIL, 3)
    assert (settings.concurrency, settings.pool, settings.heartbeat, settings.worker_lease) == (32, "threads", 5, 30)
    assert (settings.run_timeout, settings.drain_timeout, settings.executor) == (3600, 60, "orcheo")
    assert "chatkit" not in settings.triggers
    assert not settings.takes_every_trigger


def test_triggers_are_a_list_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_DISPATCH_TRIGGERS", "webhook, my label ,")
    assert Settings.load().triggers == ("webhook", "my label")
    monkeypatch.setenv("ORCHEO_DISPATCH_TRIGGERS", "*")
    assert Settings.load().takes_every_trigger


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ORCHEO_DISPATCH_POLL_INTERVAL", "soon", "got 'soon', takes a valid number"),
        ("ORCHEO_DISPATCH_POLL_INTERVAL", "0", "got '0', takes greater than or equal to 0.05"),
        ("ORCHEO_DISPATCH_BATCH_SIZE", "-1", "got '-1', takes greater than or equal to 1"),
        ("ORCHEO_DISPATCH_LOST_RUNS", "retry", "got 'retry', takes 'fail', 'requeue' or 'hold'"),
        ("ORCHEO_WORKER_POOL", "gevent", "got 'gevent', takes 'threads' or 'prefork'"),
        ("ORCHEO_LOG_FORMAT", "xml", "got 'xml', takes 'text' or 'json'"),
        ("ORCHEO_WORKER_LEASE", "6", "got 6, takes at least twice ORCHEO_WORKER_HEARTBEAT (5)"),
        ("REDIS_URL", "http://me:hunter2@x", "got a value, takes a URL that begins with redis://"),
        ("REDIS_URL", "redis://:hunter2/x@host:6379/0", "got a value, takes a URL with a number for its port"),
        ("REDIS_URL", "redis://:123/hunter2@host:6379/0", "got a value, takes a URL with a number after the host"),
        ("REDIS_URL", "redis://host/0?socket_timeout=5", "got a value, takes a URL without parameters, or rediss://"),
        ("REDIS_URL", "rediss://host/0?ssl_cert_reqs=1", "got a value, takes ssl_cert_reqs=required or optional or"),
        ("REDIS_URL", "unix://host/redis.sock", "got a value, takes a URL such as unix:///run/redis/redis.sock"),
        ("ORCHEO_POSTGRES_DSN", "mysql:hunter2", "got a value, takes a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:x@hunter2@host/db", "got a value, takes a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:x@/hunter2@host/db", "got a value, takes a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "postgresql://me:hunter2/x@host/db", "got a value, takes a Postgres DSN"),
        ("ORCHEO_POSTGRES_DSN", "host=host password=x hunter2", "got a value, takes a Postgres DSN"),
    ],
)
def test_wrong_value_is_named_with_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as raised:
        Settings.load()
    assert str(raised.value).startswith(f"{variable} {says}")
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
