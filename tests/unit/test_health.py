"""Health over HTTP, on real sockets; what concerns a process as a whole in processes of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health import server as health
from orcheo_dispatch.shared.health.checks import Check, condition, progress
from orcheo_dispatch.shared.health.probe import ask
from orcheo_dispatch.shared.health.routes import Answer, Request, Route
from orcheo_dispatch.shared.health.server import HealthServer, health_routes, serve_health
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.settings.model import Settings
from tests.support.processes.processes import until

ROOT = Path(__file__).parents[2]
NEVER = float("-inf")
Serve = Callable[[Mapping[str, Route]], HealthServer]


@pytest.fixture(autouse=True)
def quick_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_SWEEP_SECONDS", 0.02)


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HealthServer] = []

    def start(routes: Mapping[str, Route], host: str = "127.0.0.1") -> HealthServer:
        server = HealthServer(host, 0, routes)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def _routes(*checks: Check) -> dict[str, Route]:
    return health_routes(live=checks, ready=checks, metrics=lambda: (b"up 1\n", "text/plain; version=0.0.4"))


def _well(name: str = "poll") -> Check:
    return condition(name, lambda: None, "all is well")


def _request(server: HealthServer, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[HTTPResponse, str]:
    with closing(HTTPConnection(host, server.port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read().decode()


def test_checks_that_are_ok_answer_200_and_say_why(serve: Serve) -> None:
    response, body = _request(serve(_routes(_well())), "/livez")
    assert response.status == 200
    assert response.getheader("Content-Type") == "application/json"
    assert json.loads(body) == {"ok": True, "checks": [{"name": "poll", "ok": True, "why": "all is well"}]}


def test_one_check_that_fails_answers_503_with_all_of_them(serve: Serve) -> None:
    server = serve(_routes(_well(), condition("broker", lambda: "Redis is unavailable", "connected")))
    response, body = _request(server, "/readyz")
    assert response.status == 503
    assert json.loads(body) == {
        "ok": False,
        "checks": [
            {"name": "poll", "ok": True, "why": "all is well"},
            {"name": "broker", "ok": False, "why": "Redis is unavailable"},
        ],
    }


def test_liveness_and_readiness_have_checks_of_their_own(serve: Serve) -> None:
    routes = health_routes(
        live=[_well()], ready=[condition("drain", lambda: "draining", "")], metrics=lambda: (b"", "text/plain")
    )
    server = serve(routes)
    assert (_request(server, "/livez")[0].status, _request(server, "/readyz")[0].status) == (200, 503)


def test_metrics_are_served_as_they_are(serve: Serve) -> None:
    response, body = _request(serve(_routes()), "/metrics?name[]=x")
    assert (response.status, body) == (200, "up 1\n")
    assert response.getheader("Content-Type") == "text/plain; version=0.0.4"


def test_head_answers_without_a_body(serve: Serve) -> None:
    server = serve(_routes(_well()))
    response, body = _request(server, "/livez", "HEAD")
    assert (response.status, body) == (200, "")
    assert int(response.getheader("Content-Length") or 0) == len(_request(server, "/livez")[1])


def test_unknown_path_answers_404_in_one_line_and_quotes_nothing(serve: Serve) -> None:
    response, body = _request(serve(_routes()), "/hunter2")
    assert response.status == 404
    assert body == "404 Not Found. Try /livez, /readyz, /metrics.\n"


@pytest.mark.parametrize("method", ["POST", "DELETE", "HUNTER2"])
def test_other_method_answers_405_in_one_line(serve: Serve, method: str) -> None:
    response, body = _request(serve(_routes()), "/livez", method)
    assert (response.status, body) == (405, "405 Method Not Allowed.\n")
    assert response.getheader("Allow") == "GET, HEAD"


@pytest.mark.parametrize(
    "request_line", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/hunter2\r\n\r\n"]
)
def test_what_is_not_http_is_refused_without_an_echo(serve: Serve, request_line: bytes) -> None:
    server = serve(_routes())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request_line)
        answer = client.makefile("rb").read()
    assert b"400 Bad Request" in answer
    assert b"hunter2" not in answer
    assert b"<" not in answer


def test_route_of_ones_own_is_served_beside_them(serve: Serve) -> None:
    server = serve({**_routes(), "/": lambda _: Answer(b"<p>here</p>", "text/html")})
    response, body = _request(server, "/")
    assert (response.status, body, response.getheader("Content-Type")) == (200, "<p>here</p>", "text/html")


def test_check_that_raises_fails_and_tells_its_class_alone(serve: Serve) -> None:
    def broken() -> tuple[bool, str]:
        raise ValueError("hunter2")

    response, body = _request(serve(_routes(_well(), Check("loop", broken))), "/livez")
    assert response.status == 503
    assert json.loads(body)["checks"][1] == {
        "name": "loop",
        "ok": False,
        "why": "the check itself failed: ValueError",
    }


def test_route_that_raises_answers_500_and_is_logged_once(serve: Serve) -> None:
    def broken(_: Request) -> Answer:
        raise ValueError("hunter2")

    logged: list[str] = []
    sink = log.add(logged.append, format="{message} {extra}")
    try:
        server = serve({"/metrics": broken})
        assert [_request(server, "/metrics")[0].status for _ in range(3)] == [500, 500, 500]
        assert _request(server, "/metrics")[1] == "500 Internal Server Error.\n"
    finally:
        log.remove(sink)
    assert ["health_route_failed" in line for line in logged] == [True]
    assert "ValueError" in logged[0]
    assert "hunter2" not in logged[0]


def test_requests_are_not_logged(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve(_routes(_well()))
    for path in ("/livez", "/nowhere"):
        _request(server, path)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"nonsense\r\n\r\n")
    server.stop()
    assert capfd.readouterr() == ("", "")


def test_answer_does_not_tell_which_python_serves_it(serve: Serve) -> None:
    assert _request(serve(_routes()), "/livez")[0].getheader("Server", "").strip() == "orcheo-dispatch"


def test_client_that_sends_slowly_is_hung_up_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE_SECONDS", 0.5)
    server = serve(_routes())
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n")

        def dripped() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        until(dripped, what="the connection closed though it was never idle", seconds=10)


def test_many_idle_clients_keep_nobody_else_out(serve: Serve) -> None:
    server = serve(_routes(_well()))
    before = threading.active_count()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(200)]
    try:
        assert _request(server, "/livez")[0].status == 200
        assert threading.active_count() - before <= 32
    finally:
        for client in clients:
            client.close()


def test_checks_that_hang_do_not_pile_up_threads(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ROOM_SECONDS", 0.01)
    # Whoever is hung up on here is so for want of room.
    monkeypatch.setattr(health, "DEADLINE_SECONDS", 60)
    monkeypatch.setattr(health._Handler, "timeout", 60)
    let_go = threading.Event()
    hanging: list[int] = []

    def hang() -> tuple[bool, str]:
        hanging.append(1)
        let_go.wait(60)
        return True, ""

    server = serve(_routes(Check("hang", hang)))
    clients = []
    try:
        for number in range(1, 33):
            clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            clients[-1].sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            until(lambda: len(hanging) == number, what=f"{number} checks that hang", seconds=10)  # noqa: B023
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as one_more:
            assert one_more.recv(1) == b""
    finally:
        let_go.set()
        for client in clients:
            client.close()


def test_port_is_free_again_after_stop(serve: Serve) -> None:
    server = serve(_routes())
    port = server.port
    server.stop()
    server.stop()
    again = HealthServer("127.0.0.1", port, _routes())
    again.start()
    again.stop()


def test_server_that_was_only_bound_can_be_stopped() -> None:
    server = HealthServer("127.0.0.1", 0, _routes())
    server.bind()
    assert server.port > 0
    server.stop()


def test_port_in_use_is_named(serve: Serve) -> None:
    server = serve(_routes())
    with pytest.raises(SettingsError) as raised:
        HealthServer("127.0.0.1", server.port, _routes()).start()
    assert str(raised.value) == (
        f"ORCHEO_HEALTH_PORT={server.port} is invalid: expected a free port on 127.0.0.1: this one is in use, "
        "and each process needs its own"
    )
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid"])
def test_host_that_is_not_this_machine_is_named(host: str) -> None:
    with pytest.raises(
        SettingsError, match=f"ORCHEO_HEALTH_HOST='{host}' is invalid: expected an address of this machine"
    ):
        HealthServer(host, 0, _routes()).start()


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6_is_served(serve: Serve, host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback on this machine: net.ipv6.conf.lo.disable_ipv6=0 gives one")
    server = HealthServer(host, 0, _routes(_well()))
    server.start()
    try:
        assert _request(server, "/livez", host="::1")[0].status == 200
        assert ask(host, server.port)[0]
    finally:
        server.stop()


def test_port_0_of_the_settings_serves_nothing() -> None:
    settings = Settings.load(postgres_dsn="postgresql://x", health_port=0)
    assert serve_health(settings, _routes()) is None


def test_settings_say_where_it_is_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings.load(postgres_dsn="postgresql://x", health_port=port)
    server = serve_health(settings, _routes(_well()))
    assert server is not None
    try:
        assert ask(settings.health_host, settings.health_port)[0]
    finally:
        server.stop()


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_wrong_port_is_named(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("ORCHEO_HEALTH_PORT", port)
    with pytest.raises(SettingsError, match=f"ORCHEO_HEALTH_PORT='{port}' is invalid: expected"):
        Settings.load(postgres_dsn="postgresql://x")


def test_ask_tells_whether_it_is_well_and_why(serve: Serve) -> None:
    server = serve(_routes(condition("poll", lambda: "no poll", "")))
    ok, body = ask("127.0.0.1", server.port, "/readyz")
    assert not ok
    assert json.loads(body)["checks"][0]["why"] == "no poll"


def test_ask_says_why_there_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        ok, why = ask("127.0.0.1", port, timeout=0.2)
        assert (ok, why) == (False, f"no answer from http://127.0.0.1:{port}/livez: TimeoutError")
    assert ask("127.0.0.1", port) == (False, f"no answer from http://127.0.0.1:{port}/livez: Connection refused")


def test_progress_tells_how_long_ago_and_its_limit() -> None:
    now = time.monotonic()
    assert progress("poll", "poll succeeded", lambda: now - 2, 5).look() == (
        True,
        "last poll succeeded 2.0 s ago, limit 5 s",
    )
    assert progress("poll", "poll succeeded", lambda: now - 12.3, 5).look() == (
        False,
        "no poll succeeded for 12.3 s, limit 5 s",
    )


def test_patient_progress_gives_the_first_time_until_its_limit() -> None:
    ok, why = progress("poll", "poll succeeded", lambda: NEVER, 60).look()
    assert ok
    assert why.startswith("no poll succeeded yet, for 0.0 s")
    assert not progress("poll", "poll succeeded", lambda: NEVER, -1).look()[0]


def test_impatient_progress_fails_until_the_first_time() -> None:
    assert not progress("poll", "poll succeeded", lambda: NEVER, 60, patient=False).look()[0]


_SERVING = """
import os, sys, threading
from orcheo_dispatch.shared.health.checks import condition
from orcheo_dispatch.shared.health.server import HealthServer, health_routes
from orcheo_dispatch.shared.process.entry import fail
from orcheo_dispatch.shared.errors import DispatchError
checks = [condition("poll", lambda: None, "well")]
routes = health_routes(live=checks, ready=checks, metrics=lambda: (b"", ""))
server = HealthServer("127.0.0.1", int(sys.argv[1]), routes)
try:
    server.start()
except DispatchError as error:
    fail(error)
print(server.port, flush=True)
"""


def _python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_serving_keeps_no_process_from_ending() -> None:
    with _python(_SERVING + "sys.stdin.readline()", "0") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            _, complaints = process.communicate("end\n", timeout=10)
    assert (process.returncode, complaints) == (0, "")


def test_second_process_on_the_port_ends_with_exit_code_2_and_one_line(serve: Serve) -> None:
    server = serve(_routes())
    with _python(_SERVING, str(server.port)) as process:
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 2
    assert complaints == (
        f"orcheo-dispatch: ORCHEO_HEALTH_PORT={server.port} is invalid: expected a free port on 127.0.0.1: "
        "this one is in use, and each process needs its own\n"
    )


_FORKING = (
    _SERVING
    + """
sys.stdin.readline()
child = os.fork()
if child == 0:
    os.read(0, 1)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""
)


def test_child_that_outlives_its_parent_does_not_keep_the_port() -> None:
    """Neither the port nor a connection that was open at the fork."""
    with _python(_FORKING, "0") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET /livez HTTP/1.0\r\n")
            # Whoever comes later is answered, so this one has been accepted: it is open when the fork comes.
            assert ask("127.0.0.1", port)[0]
            process.stdin.write("fork\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            process.wait(10)
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            assert Path(f"/proc/{child}").exists()
            again = HealthServer("127.0.0.1", port, _routes(_well()))
            again.start()
            assert ask("127.0.0.1", port)[0]
            again.stop()
        process.stdin.close()
        until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), what="the child's end")


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
