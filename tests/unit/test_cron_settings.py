"""Who dispatches cron triggers by the settings, and what is refused at the start."""

from __future__ import annotations

from typing import Any

import pytest

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.addresses import Origin
from orcheo_dispatch.shared.settings.environment import cron_interval_note
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import CronMode

_API = {"ORCHEO_DISPATCH_CRON": "api"}
_URL = "http://orcheo:8000"


def _load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name in ("ORCHEO_API_URL", "ORCHEO_CRON_INTERVAL", "ORCHEO_CRON_DISPATCH_INTERVAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHEO_POSTGRES_DSN", "postgresql://x")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, CronMode.WORKER),
        # Orcheo's own example of an environment names its API.
        ({"ORCHEO_API_URL": "http://localhost:8000"}, CronMode.WORKER),
        # As in releases that knew no other way.
        ({"ORCHEO_API_URL": _URL, "ORCHEO_WORKER_EXECUTOR": "a.b:c"}, CronMode.API),
        ({"ORCHEO_WORKER_EXECUTOR": "a.b:c"}, CronMode.WORKER),
        ({"ORCHEO_API_URL": _URL, "ORCHEO_WORKER_EXECUTOR": "a.b:c", "ORCHEO_DISPATCH_CRON": "off"}, CronMode.OFF),
        ({"ORCHEO_API_URL": _URL, **_API}, CronMode.API),
        # Nobody here uses it, so nobody minds.
        ({"ORCHEO_API_URL": "localhost:8000"}, CronMode.WORKER),
        ({"ORCHEO_API_URL": "localhost:8000", "ORCHEO_DISPATCH_CRON": "off"}, CronMode.OFF),
    ],
)
def test_mode_follows_what_is_set(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mode: CronMode) -> None:
    assert _load(monkeypatch, **variables).cron_mode is mode


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "orcheo.example.com",
        "//orcheo:8000",
        "ftp://orcheo",
        "http://",
        "http://:8000",
        "http://orcheo:port",
        "http://orcheo:99999",
        "http://ada:hunter2@orcheo:8000",
        "http://hunter2@orcheo:8000",
        "http://ada:hunter2@",
        "http://ada:hun/ter2@orcheo",
        "ada:hunter2@orcheo:8000",
        "http://orcheo:8000?token=hunter2",
        "http://orcheo:8000/#hunter2",
        "http://orc heo:8000/hunter2",
        "http://orcheo:8000/\r\nX: hunter2",
        "http://\u00f6rcheo:8000",
        "http://orcheo\x7f:8000",
    ],
)
def test_url_that_cannot_be_asked_is_refused_at_the_start_without_quoting_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        _load(monkeypatch, ORCHEO_API_URL=url, **_API)
    assert str(refused.value).startswith("ORCHEO_API_URL has an invalid value: expected ")
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_api_that_is_not_named_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"^ORCHEO_API_URL is not set"):
        _load(monkeypatch, **_API)


@pytest.mark.parametrize("token", ["sw\nordfish", "sword fish", "swordfi\u0161h", "sword\x00fish", "s\u200bwordfish"])
def test_token_that_no_header_can_hold_is_refused_without_quoting_it(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setattr("os.environ", {"ORCHEO_POSTGRES_DSN": "postgresql://x"})
    with pytest.raises(SettingsError) as refused:
        Settings.load(cron=CronMode.API, api_url=_URL, service_token=token)
    assert str(refused.value).startswith("ORCHEO_SERVICE_TOKEN")
    assert "fish" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://orcheo:8000", "http://orcheo:8000", ""),
        ("http://orcheo:8000/", "http://orcheo:8000", ""),
        (" https://orcheo.example.com/base/ \n", "https://orcheo.example.com:443", "/base"),
        ("HTTP://Orcheo", "http://orcheo:80", ""),
        ("http://[::1]:8000", "http://[::1]:8000", ""),
    ],
)
def test_url_is_taken_apart(url: str, origin: str, path: str) -> None:
    found = Origin.of(url)
    assert (str(found), found.path) == (origin, path)


@pytest.mark.parametrize(
    ("orcheos", "seconds"),
    [
        ("30", 30.0),
        ("2.5", 2.5),
        ("0.2", 1.0),
        ("1e9", 86_400.0),
        ("nan", 60.0),
        ("inf", 60.0),
        ("-5", 60.0),
        ("0", 60.0),
        ("soon", 60.0),
        ("", 60.0),
    ],
)
def test_interval_of_orcheo_is_used_or_ignored_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, orcheos: str, seconds: float
) -> None:
    assert _load(monkeypatch, ORCHEO_CRON_DISPATCH_INTERVAL=orcheos).cron_interval == seconds
    note = cron_interval_note()
    expected: dict[str, Any] | None = {"variable": "ORCHEO_CRON_DISPATCH_INTERVAL", "used": seconds != 60.0}
    assert note is None if not orcheos else note is not None and note.items() >= (expected or {}).items()


def test_our_own_interval_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(monkeypatch, ORCHEO_CRON_INTERVAL="7", ORCHEO_CRON_DISPATCH_INTERVAL="30")
    assert settings.cron_interval == 7
    assert cron_interval_note() is None
