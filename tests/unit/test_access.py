"""The token of the health port: who is let in, and who is not."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health.access import COOKIE, LOGIN, LOGOUT, guarded
from orcheo_dispatch.shared.health.probe import LIVE, METRICS, PAGE, READY
from orcheo_dispatch.shared.health.routes import Answer, Request, Route
from orcheo_dispatch.shared.health.server import OPEN_TO_ALL
from orcheo_dispatch.shared.settings.model import Settings

TOKEN = "correct-horse-battery-staple"
PATHS = (LIVE, READY, METRICS, PAGE, "/overview.json")


def _routes(token: str | None = TOKEN) -> dict[str, Route]:
    routes: dict[str, Route] = {path: lambda request: Answer(request.path.encode()) for path in PATHS}
    return dict(guarded(routes, SecretStr(token) if token else None, open_to_all=OPEN_TO_ALL))


def _ask(path: str, routes: dict[str, Route] | None = None, **headers: str) -> Answer:
    return (routes or _routes())[path](Request(path, {}, {name.lower(): value for name, value in headers.items()}))


def _cookie() -> str:
    return _ask(LOGIN, Authorization=f"Bearer {TOKEN}").headers["Set-Cookie"].split(";")[0]


def test_without_a_token_all_is_open_and_nothing_is_added() -> None:
    routes = _routes(None)
    assert list(routes) == list(PATHS)
    assert {_ask(path, routes).status for path in PATHS} == {200}


def test_with_a_token_only_probes_and_the_bare_page_are_open() -> None:
    assert {path for path in PATHS if _ask(path).status == 200} == {LIVE, READY, PAGE}


def test_refusal_names_the_way_in_and_quotes_nothing() -> None:
    refused = _ask(METRICS, Authorization="Bearer hunter2")
    assert (refused.status, refused.headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert b"hunter2" not in refused.body
    assert TOKEN.encode() not in refused.body


def test_bearer_of_the_token_may_read() -> None:
    assert _ask(METRICS, Authorization=f"Bearer {TOKEN}").status == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"bearer {TOKEN}", "Bearer é\udc80"]
)
def test_anything_else_is_refused(shown: str) -> None:
    assert _ask(METRICS, Authorization=shown).status == 401


def test_token_in_the_address_is_not_taken() -> None:
    assert _routes()[METRICS](Request(METRICS, {"token": TOKEN}, {})).status == 401


def test_login_gives_a_cookie_that_no_script_reads_and_no_other_site_sends() -> None:
    answer = _ask(LOGIN, Authorization=f"Bearer {TOKEN}")
    cookie = answer.headers["Set-Cookie"]
    assert (answer.status, answer.body) == (204, b"")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    secure = _ask(LOGIN, None, **{"Authorization": f"Bearer {TOKEN}", "X-Forwarded-Proto": "https"})
    assert "Secure" in secure.headers["Set-Cookie"].split("; ")


def test_login_with_a_wrong_token_gives_no_cookie() -> None:
    answer = _ask(LOGIN, Authorization="Bearer wrong-wrong-wrong-wrong")
    assert answer.status == 401
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("before", ["", "a=b; ", 'odd="{[; ', "x[]=1; ", f"{COOKIE}=old; "])
def test_cookie_lets_in_beside_those_of_others(before: str) -> None:
    assert _ask(METRICS, Cookie=before + _cookie()).status == 200


@pytest.mark.parametrize("cookie", [f"{COOKIE}=", f"{COOKIE}=wrong", COOKIE, f"other={TOKEN}", f"{COOKIE}={TOKEN}"])
def test_other_cookies_do_not(cookie: str) -> None:
    assert _ask(METRICS, Cookie=cookie).status == 401


def test_cookie_of_an_old_token_does_not() -> None:
    assert _ask(METRICS, _routes("another-token-of-today"), Cookie=_cookie()).status == 401


def test_cookie_is_good_at_each_process_with_the_same_token() -> None:
    assert _ask(METRICS, _routes(), Cookie=_cookie()).status == 200


def test_logout_takes_the_cookie_away() -> None:
    assert _ask(LOGOUT).headers["Set-Cookie"].startswith(f"{COOKIE}=; Max-Age=0;")


@pytest.mark.parametrize("token", ["hunter2-short", "hunter2 with a space in it", "hunter2-é-éééééééééé"])
def test_token_that_is_none_is_refused_without_quoting_it(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("ORCHEO_HEALTH_TOKEN", token)
    with pytest.raises(SettingsError, match="ORCHEO_HEALTH_TOKEN has an invalid value: expected at least 16") as raised:
        Settings.load(postgres_dsn="postgresql://x")
    assert "hunter2" not in str(raised.value)


def test_token_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHEO_HEALTH_TOKEN", TOKEN)
    settings = Settings.load(postgres_dsn="postgresql://x")
    assert settings.health_token is not None
    assert TOKEN not in repr(settings)
