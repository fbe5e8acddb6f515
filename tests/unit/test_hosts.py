"""The names that the health port answers to: a foreign one gets nothing of the page, machines get their answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest

from orcheo_dispatch.ops.sandbox.child import free_port
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health.hosts import is_named, names_of
from orcheo_dispatch.shared.health.probe import LIVE, METRICS, PAGE, READY
from orcheo_dispatch.shared.health.routes import Answer, Route
from orcheo_dispatch.shared.health.server import HealthServer, serve_health
from orcheo_dispatch.shared.settings.model import Settings

MACHINES = (LIVE, READY, METRICS)
PEOPLE = (PAGE, "/overview.json", "/login", "/something-new")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[HealthServer]:
    """A server of the settings that the test names; each route answers with 200."""
    routes: dict[str, Route] = {path: lambda _: Answer(b"well") for path in (*MACHINES, *PEOPLE)}
    settings = {"postgres_dsn": "postgresql:///x", "health_port": free_port(), **getattr(request, "param", {})}
    served = serve_health(Settings.load(**settings), routes)
    assert served is not None
    yield served
    served.stop()


def _ask(server: HealthServer, path: str, *hosts: str, version: str = "1.1") -> int:
    lines = [f"GET {path} HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return int(connection.makefile("rb").readline().split()[1])


_FOREIGN = (
    *("evil.example", "evil.example:9461", "127.0.0.1.evil.example", "localhost.evil.example", "evil.", "2130706433"),
    *("0x7f.1", "a@127.0.0.1", "127.0.0.1:1:2", "[::1].evil", "[evil]", "", "-", "\x1b[31m", "[::1", "l\u0131calhost"),
)
_OWN = (
    *("localhost", "LOCALHOST.", "localhost:1", "127.0.0.1:9461", "10.2.3.4:8080", "[::1]:9461", "[fd00::7]"),
    *(socket.gethostname(), socket.gethostname().upper() + ":8080"),
)


@pytest.mark.parametrize("path", PEOPLE)
@pytest.mark.parametrize("host", _FOREIGN)
def test_foreign_name_gets_nothing_of_the_page(server: HealthServer, path: str, host: str) -> None:
    assert _ask(server, path, host) == 421


@pytest.mark.parametrize("path", [*PEOPLE, *MACHINES])
@pytest.mark.parametrize("host", _OWN)
def test_own_name_and_addresses_are_answered(server: HealthServer, path: str, host: str) -> None:
    """A pod is asked at its address; a name of somebody else's cannot be one."""
    assert _ask(server, path, host) == 200


@pytest.mark.parametrize("path", MACHINES)
def test_machines_are_answered_under_any_name(server: HealthServer, path: str) -> None:
    """Prometheus asks for the name of a service, a load balancer for whatever it was told."""
    assert _ask(server, path, "dispatcher.orcheo.svc.cluster.local:8080") == 200


def test_refusal_is_one_line_that_names_the_setting(server: HealthServer) -> None:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", "/", headers={"Host": "evil.example"})
        response = connection.getresponse()
        body = response.read().decode()
    assert (response.status, len(body.splitlines())) == (421, 1)
    assert "ORCHEO_HEALTH_ALLOWED_HOSTS" in body
    assert "evil" not in body


def test_request_without_a_host_is_no_browsers_and_two_are_a_mistake(server: HealthServer) -> None:
    assert _ask(server, PAGE, version="1.0") == 200
    assert _ask(server, PAGE, "localhost", "evil.example") == 400


@pytest.mark.parametrize("server", [{"health_allowed_hosts": ("page.example.org", ".corp.example")}], indirect=True)
def test_names_of_the_setting_are_answered(server: HealthServer) -> None:
    for host in ("page.example.org", "Page.Example.Org.:443", "a.corp.example", "b.a.corp.example:1"):
        assert _ask(server, PAGE, host) == 200
    for host in ("x.page.example.org", "corp.example", "evilcorp.example", "page.example.org.evil"):
        assert _ask(server, PAGE, host) == 421


@pytest.mark.parametrize("server", [{"health_allowed_hosts": ("*",)}], indirect=True)
def test_any_name_is_answered_where_the_setting_says_so(server: HealthServer) -> None:
    assert _ask(server, PAGE, "evil.example") == 200


@pytest.mark.parametrize("wrong", ["http://page.example", "page.example:443", "a b", "*.example", "..x", "[::1]"])
def test_what_is_no_name_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("ORCHEO_HEALTH_ALLOWED_HOSTS", f"fine.example,{wrong}")
    with pytest.raises(
        SettingsError, match=r"ORCHEO_HEALTH_ALLOWED_HOSTS=.* is invalid: expected host names without a port"
    ):
        Settings.load(postgres_dsn="postgresql:///x")


def test_name_that_is_served_on_is_answered() -> None:
    assert is_named("queue-1.example:9461", names_of("queue-1.example", ()))
    assert not is_named("queue-2.example", names_of("0.0.0.0", ()))
