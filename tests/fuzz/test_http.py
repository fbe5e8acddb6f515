"""What HTTP brings: to the health port of a process, and as the answer of Orcheo's API. Real sockets, any bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orcheo_dispatch.dispatcher.cron import ApiCron
from orcheo_dispatch.dispatcher.page import StatusPage
from orcheo_dispatch.shared.health.checks import condition
from orcheo_dispatch.shared.health.server import HealthServer, health_routes, protected
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.addresses import Origin
from tests.fuzz.examples import SECRET, broken, check_line, damaged, fuzzed, raw, texts
from tests.support.database.databases import Database
from tests.support.database.runs import settings_for

_ANSWER_SECONDS = 10
_PAUSE = {"why": "too many", "workflow_id": "w", "seconds": 60}
_REQUEST = (
    "GET /overview.json?status=failed&workflow=w HTTP/1.1\r\nHost: localhost\r\nCookie: orcheo_dispatch=x\r\n"
    f"Authorization: Bearer {SECRET}\r\nConnection: close\r\n\r\n"
)
_POST = (
    "POST /actions/pause HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n"
    "X-CSRF-Token: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{}\n"
)
_PATHS = ["/livez", "/readyz", "/metrics", "/", "/overview.json", "/run.json", "/login", "/logout", "/session.json"]
_API_ANSWER = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\nRetry-After: 7\r\n"
    'Date: Fri, 27 Nov 2026 10:00:00 GMT\r\nLocation: http://elsewhere/x\r\n\r\n[{"id": "run"}]'
)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Every line of the log, with its fields."""
    lines: list[str] = []
    sink = log.add(lambda message: lines.append(f"{message.record['message']} {message.record['extra']}"))
    yield lines
    log.remove(sink)


@pytest.fixture
def server(database: Database) -> Iterator[HealthServer]:
    """The health port of a dispatcher, with the status page, its actions and a token, on a real database."""
    settings = settings_for(database, health_token=SECRET, page_actions=True, health_port=1)
    check = condition("poll", lambda: None, "all is well")
    page = StatusPage(settings, Process(ProcessKind.DISPATCHER, id=uuid4(), host="h", pid=1))
    metrics = health_routes(live=[check], ready=[check], metrics=lambda: (b"up 1\n", "text/plain"))
    server = HealthServer("127.0.0.1", 0, protected(settings, {**metrics, **page.routes([check])}))
    server.start()
    yield server
    server.stop()
    page.close()


def _sent(port: int, request: bytes) -> bytes:
    """Send these bytes and return what comes back until the server closes the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                answer += piece
    return answer


targets = st.sampled_from(_PATHS) | st.builds(
    lambda path, query: f"{path}?{query}",
    st.sampled_from(_PATHS),
    st.sampled_from(["status=%ff", "status=", "a&" * 40, "workflow=%00", "id=%0a", "status=failed;x", "%"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
)
lines = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=60)
asked = st.builds(
    lambda method, target, headers: "".join([f"{method} {target} HTTP/1.1\r\n", *headers, "\r\n"]).encode("latin-1"),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "", "G ET"]),
    targets,
    st.lists(
        st.builds(
            "{}: {}\r\n".format,
            st.sampled_from(["Host", "Authorization", "Cookie", "Content-Length", "Origin", "X-CSRF-Token", "Expect"]),
            lines,
        ),
        max_size=5,
    ),
)


@given(request=asked | damaged(_REQUEST.encode()) | damaged(_POST.encode()) | broken)
@fuzzed
def test_request_of_any_bytes_is_answered_in_http_or_hung_up(
    server: HealthServer, said: list[str], request: bytes
) -> None:
    said.clear()
    answer = _sent(server.port, request)
    # HTTP/0.9 has no head: the request names no version.
    if answer.startswith(b"HTTP/"):
        head, _, body = answer.partition(b"\r\n\r\n")
        status = HTTPStatus(int(head.split()[1]))
        assert status is not HTTPStatus.INTERNAL_SERVER_ERROR
        if status >= 400 and body and b"application/json" not in head:
            check_line(body.decode().removesuffix("\n"))
    assert SECRET.encode() not in answer
    assert b"Traceback" not in answer
    assert not [line for line in said if line.startswith("health_route_failed") or SECRET in line]
    assert b" 200 " in _sent(server.port, b"GET /livez HTTP/1.0\r\n\r\n")


@given(
    action=st.sampled_from(["pause", "requeue", "limit", "nothing"]),
    body=raw(_PAUSE) | raw({"runs": ["r"], "why": "x"}),
)
@fuzzed
def test_body_of_an_action_is_taken_or_refused_in_json(
    server: HealthServer, said: list[str], action: str, body: bytes
) -> None:
    said.clear()
    headers = {"Authorization": f"Bearer {SECRET}"}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=_ANSWER_SECONDS)) as client:
        client.request("GET", "/session.json", headers=headers)
        session = client.getresponse()
        cookie = (session.getheader("Set-Cookie") or "").partition(";")[0]
        csrf = json.loads(session.read())["csrf"]
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin", "X-CSRF-Token": csrf}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=_ANSWER_SECONDS)) as client:
        asked = headers | own | {"Cookie": cookie, "Content-Type": "application/json"}
        client.request("POST", f"/actions/{action}", body=body, headers=asked)
        response = client.getresponse()
        answer = response.read()
    assert response.status in {200, 400, 404, 409, 413}, answer
    if action != "nothing" and response.status != 413:
        assert json.loads(answer).keys() <= {"error", "changed", "refused"}
    assert SECRET.encode() not in answer
    assert not [line for line in said if line.startswith("health_route_failed") or SECRET in line]


class _Api:
    """Answers each request with the bytes that it was given last."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, suppress(OSError):
                    client.recv(65536)
                    client.sendall(self.answer)


@pytest.fixture
def api() -> Iterator[_Api]:
    api = _Api()
    yield api
    api.close()


dates = st.sampled_from(
    [
        "Fri, 27 Nov 2026 10:00:00 GMT",
        "1 Jan 99999999999999999999 00:00:00 GMT",
        "1 Jan 1 00:00:00 +9999",
        "-1",
        "1e999",
    ]
)
places = st.sampled_from(["http://[", "http://x:99999/", "//", "/x", "http://u:p@h/"])
heads = st.builds(
    lambda status, pairs, body: (
        (f"HTTP/1.1 {status} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in pairs) + "\r\n").encode(
            "latin-1", "replace"
        )
        + body
    ),
    st.sampled_from([200, 204, 301, 401, 429, 503, 0, 99999]) | st.integers(100, 599),
    st.lists(
        st.tuples(st.just("Retry-After"), dates | lines)
        | st.tuples(st.sampled_from(["Date", "Location"]), dates | places | lines)
        | st.tuples(
            st.sampled_from(["Content-Length", "Transfer-Encoding"]),
            st.sampled_from(["chunked", "0", "5", "9" * 30]) | lines,
        ),
        max_size=5,
    ),
    broken | raw([{"id": "run"}]),
)


@given(answer=heads | damaged(_API_ANSWER.encode()) | broken)
@fuzzed
def test_answer_of_the_api_of_any_bytes_is_a_report_in_one_line(api: _Api, answer: bytes) -> None:
    api.answer = answer
    report = ApiCron(Origin.of(f"http://127.0.0.1:{api.port}"), SECRET)()
    assert report is not None
    assert report.outcome
    if report.outcome != "succeeded":
        check_line(report.reason)
        assert report.runs == 0


@given(url=texts | damaged(b"https://orcheo.example.com:8443/base").map(lambda each: each.decode("utf-8", "replace")))
@fuzzed
def test_address_of_the_api_can_be_used_or_is_refused(url: str) -> None:
    try:
        origin = Origin.of(url)
    except ValueError as error:
        check_line(str(error))
        return
    assert 0 < origin.port < 65536
    assert str(origin).isprintable()
