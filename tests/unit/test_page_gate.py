"""Who may act on the status page, by settings and by request, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from orcheo_dispatch.dispatcher.page.gate import PROXY, TOKEN, USER, Gate, Refusal
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health.origin import Sessions, from_own_page
from orcheo_dispatch.shared.health.routes import Request
from orcheo_dispatch.shared.settings.model import Settings

_TOKEN = "correct-horse-battery-staple"
_BEARER = ("Authorization", f"Bearer {_TOKEN}")


def _gate(**settings: Any) -> Gate:
    return Gate(Settings.load(postgres_dsn="postgresql://x", page_actions=True, **settings))


def _request(*headers: tuple[str, str], client: str = "127.0.0.1") -> Request:
    return Request.of("/session.json", headers, client=client)


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        (
            "ACTIONS",
            "true",
            "ORCHEO_PAGE_ACTIONS=true is invalid: expected false unless ORCHEO_HEALTH_TOKEN or ORCHEO_",
        ),
        ("ACTIONS", "maybe", "ORCHEO_PAGE_ACTIONS='maybe' is invalid: expected true or false"),
        ("USER_HEADER", "Cookie", "ORCHEO_PAGE_USER_HEADER='Cookie' is invalid: expected the name of a header that"),
        ("USER_HEADER", "X_User", "ORCHEO_PAGE_USER_HEADER='X_User' is invalid: expected the name of a header that"),
        ("PROXIES", "10.0.0.300", "ORCHEO_PAGE_PROXIES='10.0.0.300' is invalid: expected addresses or networks"),
        ("PROXIES", "10.0.0.1/8", "ORCHEO_PAGE_PROXIES='10.0.0.1/8' is invalid: expected addresses or networks"),
        ("PROXIES", ",", "ORCHEO_PAGE_PROXIES=',' is invalid: expected addresses or networks"),
    ],
)
def test_wrong_setting_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, line: str
) -> None:
    monkeypatch.setenv(f"ORCHEO_PAGE_{variable}", value)
    with pytest.raises(SettingsError) as raised:
        Settings.load(postgres_dsn="postgresql://x")
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_actions_are_off_by_default() -> None:
    settings = Settings.load(postgres_dsn="postgresql://x")
    assert (settings.page_actions, settings.page_user_header) == (False, None)
    assert settings.page_proxies == ("127.0.0.0/8", "::1/128")


def test_bearer_of_the_token_is_named_by_address() -> None:
    gate = _gate(health_token=_TOKEN)
    assert gate.user_of(_request(_BEARER, client="192.0.2.1")) == "token 192.0.2.1"
    assert gate.user_of(_request()) is TOKEN


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_user_is_believed_from_loopback(client: str) -> None:
    gate = _gate(page_user_header="X-User")
    assert gate.user_of(_request(("x-USER", "ada@example.org"), client=client)) == "ada@example.org"


@pytest.mark.parametrize("client", ["192.0.2.1", "::2", "fe80::1%eth0", "", "localhost"])
def test_user_is_not_believed_from_elsewhere(client: str) -> None:
    assert _gate(page_user_header="X-User").user_of(_request(("X-User", "ada"), client=client)) is PROXY


@pytest.mark.parametrize("named", [(), ("",), (" ",), ("x" * 201,), ("ada", "ada"), ("ada", "root")])
def test_user_is_named_once(named: tuple[str, ...]) -> None:
    headers = [("X-User", name) for name in named]
    assert _gate(page_user_header="X-User").user_of(_request(*headers)) is USER


def test_with_both_the_token_and_the_user_are_required() -> None:
    gate = _gate(page_user_header="X-User", health_token=_TOKEN)
    assert gate.user_of(_request(("X-User", "ada"), _BEARER)) == "ada"
    assert gate.user_of(_request(("X-User", "ada"))) is TOKEN
    assert gate.user_of(_request(_BEARER)) is USER


def test_name_that_is_not_ascii_is_utf8() -> None:
    sent = "Zoë".encode().decode("latin-1")
    assert _gate(page_user_header="X-User").user_of(_request(("X-User", sent))) == "Zoë"


def _from(origin: str | None, host: str = "page.example.org", **headers: str) -> bool:
    given = [("Host", host), *([("Origin", origin)] if origin else [])]
    given += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return from_own_page(Request.of("/actions/pause", given), ("dispatch.example.org", ".corp.example", "*"))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://page.example.org", "page.example.org"),
        ("https://PAGE.example.org:8443", "page.example.org:8443"),
        ("http://[::1]:9101", "[::1]:9101"),
        # A proxy that asks for another name: the browser's is among those that the settings allow.
        ("https://dispatch.example.org", "127.0.0.1:9101"),
        ("https://a.corp.example:8443", "127.0.0.1:9101"),
    ],
)
def test_own_page_may_act(origin: str, host: str) -> None:
    assert _from(origin, host)
    assert _from(origin, host, Sec_Fetch_Site="same-origin")
    assert not _from(origin, host, Sec_Fetch_Site="cross-site")
    assert not _from(origin, host, Sec_Fetch_Site="none")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "page.example.org",
        "https://",
        "https://evil.example",
        "https://page.example.org.evil.example",
        "https://page.example.org:8443",
        "https://127.0.0.1",
        "https://evil.example@page.example.org",
        "file://page.example.org",
        "https://[",
    ],
)
def test_other_pages_may_not(origin: str | None) -> None:
    assert not _from(origin)
    assert not _from(origin, Sec_Fetch_Site="same-origin")


def test_session_is_good_for_one_browser_and_one_user() -> None:
    sessions = Sessions(None)
    value, cookie = sessions.begin(_request(), "ada")
    shown = [("Cookie", f"a=b; {cookie.partition(';')[0]}"), ("X-CSRF-Token", value)]
    assert sessions.admits(_request(*shown), "ada")
    assert not sessions.admits(_request(*shown), "eve")
    assert not sessions.admits(_request(shown[0]), "ada")
    assert not sessions.admits(_request(shown[1]), "ada")
    # It goes on, so that two windows do not end each other's.
    assert sessions.begin(_request(shown[0]), "ada") == (value, cookie)
    other, _ = sessions.begin(_request(), "ada")
    assert not sessions.admits(_request(shown[0], ("X-CSRF-Token", other)), "ada")
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))


def test_session_is_good_at_processes_with_the_same_token_only() -> None:
    token = Settings.load(postgres_dsn="postgresql://x", health_token=_TOKEN).health_token
    value, cookie = Sessions(token).begin(_request(), "ada")
    request = _request(("Cookie", cookie.partition(";")[0]), ("X-CSRF-Token", value))
    assert Sessions(token).admits(request, "ada")
    assert not Sessions(None).admits(request, "ada")


def test_refusals_are_one_line() -> None:
    from orcheo_dispatch.dispatcher.page import gate

    refusals = [each for each in vars(gate).values() if isinstance(each, Refusal)]
    assert len(refusals) == 9
    assert all("\n" not in each.because and each.status >= 400 for each in refusals)
