"""The way through the API: what each answer is taken for, who gets the token, and when it is asked again."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orcheo_dispatch.dispatcher.api import ask_api
from orcheo_dispatch.dispatcher.cron import PATH, ApiCron
from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.settings.addresses import Origin
from tests.support.processes.processes import until
from tests.support.servers.apis import Answer, listening, response

TOKEN = "only-for-tests-service-token"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True)
def proxied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[bytes]]:
    """What a proxy that the environment names is sent, with a `.netrc` for every host beside it."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login ada password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("no_proxy", raising=False)
    with listening(response("200 OK", b"[]")) as proxy:
        for name in PROXIES:
            monkeypatch.setenv(name, proxy.url)
        yield proxy.requests
        assert proxy.requests == []


@pytest.mark.parametrize(
    ("answer", "outcome", "why"),
    [
        (response("200 OK", b"[]"), "succeeded", ""),
        (response("200 OK", json.dumps([{}, {}]).encode()), "succeeded", ""),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "succeeded", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n", "succeeded", ""),
        (response("401 Unauthorized", b"{}"), "unauthorized", "ORCHEO_SERVICE_TOKEN"),
        (response("403 Forbidden"), "forbidden", "ORCHEO_SERVICE_TOKEN"),
        (response("404 Not Found"), "refused", "ORCHEO_API_URL"),
        (response("405 Method Not Allowed"), "refused", "ORCHEO_API_URL"),
        (response("418 Teapot"), "refused", "418"),
        (response("422 Unprocessable"), "refused", "credentials"),
        (response("429 Too Many Requests"), "rate_limited", "ORCHEO_MULTI_WORKSPACE_RATE_LIMIT"),
        (response("500 Oops", b"swordfish"), "server_error", "500"),
        (response("502 Bad Gateway"), "server_error", "502"),
        (response("503 Away"), "server_error", "503"),
        (response("204 No Content"), "malformed", "no list"),
        (response("200 OK", b'{"runs": []}'), "malformed", "no list"),
        (response("200 OK", b"<html>swordfish</html>"), "malformed", "no list"),
        (response("200 OK", b"[" * 100_000), "malformed", "no list"),
        (response("200 OK", b"\xff\xfe"), "malformed", "no list"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[", "malformed", "incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[]", "malformed", "incomplete"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[]", "malformed", "HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]", "malformed", ""),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "malformed", "HTTP"),
        (b"220 swordfish ESMTP\r\n", "malformed", "HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "malformed", "HTTP"),
        (b"HTTP/1.1 banana\r\n\r\n", "malformed", "HTTP"),
        (b"", "malformed", "closed the connection"),
        (
            response("302 Found", b"", "Location: http://elsewhere:81/x?swordfish"),
            "redirected",
            "302 to http://elsewhere:81",
        ),
        (response("307 Moved", b"", "Location: /swordfish"), "redirected", "another path"),
        (response("308 Moved", b"", "Location: http://[bad"), "redirected", "308"),
        (response("301 Moved"), "redirected", "301"),
    ],
)
def test_each_answer_is_told_apart_and_never_quoted(answer: Answer, outcome: str, why: str) -> None:
    with listening(answer) as api:
        report = _cron(api.url)()
    assert report is not None
    assert report.outcome == outcome, report
    assert why in report.reason
    assert "swordfish" not in report.reason
    assert TOKEN not in report.reason
    (request,) = api.requests
    assert request.startswith(f"POST {PATH} HTTP/1.1\r\n".encode())
    assert request.count(f"Authorization: Bearer {TOKEN}\r\n".encode()) == 1
    assert report.runs == (2 if answer == response("200 OK", b"[{}, {}]") else 0)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirect_is_not_followed_to_any_host(status: str) -> None:
    with listening(response("200 OK", b"[]")) as elsewhere:
        with listening(response(status, b"", f"Location: {elsewhere.url}/steal")) as api:
            report = _cron(api.url)()
        assert report is not None
        assert (report.outcome, elsewhere.requests) == ("redirected", [])


def test_api_that_nobody_serves_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://nobody.invalid", f"https://127.0.0.1:{port}"):
        report = _cron(url)()
        assert report is not None
        assert report.outcome == "unreachable", report


def test_plain_http_where_tls_is_expected_is_unreachable() -> None:
    with listening(response("200 OK", b"[]")) as api:
        report = _cron(api.url.replace("http:", "https:"))()
    assert report is not None
    assert (report.outcome, report.reason) == ("unreachable", "it does not speak TLS")


def test_answer_that_drips_for_ever_is_given_up_at_the_deadline() -> None:
    ended = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.05):
            client.sendall(b"X-Slow: 1\r\n")

    with listening(drip) as api:
        began = time.monotonic()
        answer = ask_api(Origin.of(api.url), PATH, None, deadline=0.7)
        ended.set()
    assert answer.failure == "unreachable"
    assert time.monotonic() - began < 5


def test_api_is_asked_again_after_a_pause_that_grows_and_ends_with_success() -> None:
    with listening(response("500 Oops")) as api:
        cron = _cron(api.url)
        pauses = []
        for _ in range(8):
            assert cron() is not None
            pauses.append(round(cron._not_before - time.monotonic()))
            assert cron() is None
            cron._not_before = float("-inf")
        assert pauses == [15, 30, 60, 120, 240, 480, 600, 600]
        assert len(api.requests) == 8
        api.answer = response("200 OK", b"[]")
        assert cron() == CronReport("succeeded")
        assert cron() == CronReport("succeeded")


def test_pauses_of_processes_that_failed_together_differ() -> None:
    with listening(response("500 Oops")) as api:
        pauses = set()
        for share in (0.0, 0.25, 0.5, 0.99):
            cron = _cron(api.url, share)
            cron()
            pauses.add(round(cron._not_before - time.monotonic(), 1))
    assert len(pauses) == 4
    assert max(pauses) <= 15 * 1.2 + 0.1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (["Retry-After: 120"], 120),
        (["Retry-After: 1"], 15),
        (["Retry-After: 999999999"], 3600),
        (["Retry-After: nan"], 15),
        (["Retry-After: -5"], 15),
        (["Retry-After: soon"], 15),
        (["Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT"], 15),
        # Seconds by the API's own clock, whatever ours says.
        (["Date: Mon, 01 Jan 2001 00:00:00 GMT", "Retry-After: Mon, 01 Jan 2001 00:02:00 GMT"], 120),
        (["Retry-After: Mon, 01 Jan 2001 00:02:00 GMT"], 15),
    ],
)
def test_api_says_when_to_ask_again(headers: list[str], seconds: int) -> None:
    with listening(response("429 Too Many Requests", b"", *headers)) as api:
        cron = _cron(api.url)
        cron()
    assert round(cron._not_before - time.monotonic()) == seconds


def test_listener_of_these_tests_would_see_a_second_request() -> None:
    with listening(response("200 OK", b"[]")) as api:
        ask_api(Origin.of(api.url), PATH, None)
        ask_api(Origin.of(api.url), PATH, None)
        until(lambda: len(api.requests) == 2, what="two requests")
    assert b"Authorization" not in api.requests[0]


def _cron(url: str, share: float = 0.0) -> ApiCron:
    return ApiCron(Origin.of(url), TOKEN, pause=lambda: share)
