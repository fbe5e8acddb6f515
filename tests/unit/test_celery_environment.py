"""No environment variable that Celery reads by itself changes what our apps do."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from orcheo_dispatch.shared.broker import celery_environment
from orcheo_dispatch.shared.broker.app import make_app
from orcheo_dispatch.shared.broker.celery_app import Loader
from orcheo_dispatch.shared.broker.celery_environment import OVERRULED, REMOVED
from orcheo_dispatch.shared.settings.model import Settings

_BROKER = "redis://127.0.0.1:6379/7"
_READS = re.compile(
    r"(?:environ(?:\.get|\.pop|\.setdefault)?|getenv|_int_env|_float_env)[\[(]\s*['\"](?P<name>\w+)['\"]"
)
# Of transports, pools and tools that our processes never load; and what Celery sets itself, or only reads to display.
_WITHOUT_EFFECT = {
    *("CELERY_LOG_FILE", "CELERY_LOG_LEVEL", "CELERY_LOG_REDIRECT", "CELERY_LOG_REDIRECT_LEVEL"),
    *("CELERY_RDB_HOST", "CELERY_RDB_PORT", "CELERY_SKIP_CHECKS", "C_FAKEFORK", "C_FORCE_ROOT", "NOSETPS"),
    *(
        "EVENTLET_NOBLOCK",
        "GEVENT_NOBLOCK",
        "ITERM_PROFILE",
        "TERM",
        "TERM_PROGRAM",
        "MP_MAIN_FILE",
        "PUBSUB_EMULATOR_HOST",
    ),
    *("_MP_FORK_LOGFILE_", "_MP_FORK_LOGFORMAT_", "_MP_FORK_LOGLEVEL_", "NUMBER_OF_PROCESSORS"),
    *("DJANGO_PROJECT_DIR", "MULTIPROCESSING_FORKING_DISABLE", "celery_dummy_proxy"),
    *("SLMQ_ACCOUNT", "SLMQ_HOST", "SLMQ_PORT", "SLMQ_SECURE", "SL_API_KEY", "SL_USERNAME"),
}


def _settings() -> Settings:
    return Settings.load(postgres_dsn="postgresql://nobody@127.0.0.1:1/x", redis_url=_BROKER)


def test_every_variable_that_the_installed_celery_reads_is_known() -> None:
    read = set()
    for package in ("celery", "kombu", "billiard"):
        (folder,) = importlib.import_module(package).__path__
        for path in Path(folder).rglob("*.py"):
            if "contrib" not in path.parts:
                read |= {found["name"] for found in _READS.finditer(path.read_text(encoding="utf-8"))}
    assert {"CELERY_BROKER_URL", "CELERY_WORKER_REVOKES_MAX", "REMAP_SIGTERM"} <= read, "the pattern finds too little"
    assert read - {*OVERRULED, *REMOVED} <= _WITHOUT_EFFECT


@pytest.mark.parametrize("value", ["redis://127.0.0.1:1/3", "django-db", "no.such.module", "rubbish"])
@pytest.mark.parametrize("variable", OVERRULED)
def test_app_obeys_its_settings_alone(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    app = make_app("test", _settings(), None)
    for connection in (app.connection_for_read(), app.connection_for_write(), app.connection()):
        assert connection.as_uri(include_password=True) == _BROKER
    with app.producer_pool.acquire(block=True) as producer:
        assert producer.__connection__.as_uri(include_password=True) == _BROKER
    assert type(app.backend).__name__ == "DisabledBackend"
    assert type(app.loader) is Loader


def test_ignored_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_environment.ignored() == []
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "django-db")
    monkeypatch.setenv("CELERY_BROKER_URL", "")
    assert celery_environment.ignored() == ["CELERY_RESULT_BACKEND"]
