"""Serve health over HTTP: /livez, /readyz, /metrics and further routes of a process.

GET and HEAD never change anything. A POST is accepted only below /actions/, whose routes decide themselves who may act.

The server never blocks the process: it uses daemon threads, limits the number and duration of connections, and logs no
requests. It is the standard library's server with these limits: for a few fixed routes, a web server would be one
more dependency of every process, with its own event loop or threads and its own logs.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from weakref import WeakSet

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.health.access import guarded
from orcheo_dispatch.shared.health.checks import Check
from orcheo_dispatch.shared.health.hosts import answering_to, names_of
from orcheo_dispatch.shared.health.probe import (
    ACTIONS,
    ASSETS,
    DEADLINE_SECONDS,
    LIVE,
    METRICS,
    PAGE,
    READY,
    without_brackets,
)
from orcheo_dispatch.shared.health.routes import Answer, Request, Route
from orcheo_dispatch.shared.logs.lines import describe, log
from orcheo_dispatch.shared.settings.model import Settings

OPEN_TO_ALL = frozenset({LIVE, READY, PAGE})
"""Open without a token: probes have none, and the page itself contains no data, since it fetches them."""
OPEN_TO_ALL_NAMES = frozenset({LIVE, READY, METRICS})
"""Open under any host name: machines request them, and they contain counts and states, no names of workflows."""
_CONNECTIONS = 16
"""Maximum number of open connections; a new one closes the oldest."""
_THREADS = 32
"""Maximum number of handler threads; a connection beyond that is closed unless a thread ends within a second."""
_ROOM_SECONDS = 1.0
_MOST_BODY_BYTES = 64 * 1024
"""Maximum size of the body of a POST."""
_ACTION_SECONDS = 30.0
"""Maximum duration of the connection of a POST: an action may concern many runs."""
_HUNG_UP = float("inf")
_SWEEP_SECONDS = 0.5


def health_routes(
    *, live: Sequence[Check], ready: Sequence[Check], metrics: Callable[[], tuple[bytes, str]]
) -> dict[str, Route]:
    """Return the three routes, to which more may be added; `metrics` returns a body and its content type."""
    return {
        LIVE: lambda _: _answer_checks(live),
        READY: lambda _: _answer_checks(ready),
        METRICS: lambda _: Answer(*metrics()),
    }


def serve_health(settings: Settings, routes: Mapping[str, Route]) -> HealthServer | None:
    """Serve the routes at the configured address; None if no port is set. Raises `SettingsError`."""
    if settings.health_port == 0:
        return None
    server = HealthServer(settings.health_host, settings.health_port, protected(settings, routes))
    server.start()
    return server


def protected(settings: Settings, routes: Mapping[str, Route]) -> Mapping[str, Route]:
    """Return the routes, each open only to those who may use it. Those below /actions/ check this themselves."""
    actions = {path for path in routes if path.startswith(ACTIONS)}
    assets = {path for path in routes if path.startswith(ASSETS)}
    routes = guarded(routes, settings.health_token, open_to_all=OPEN_TO_ALL | assets | actions)
    names = names_of(settings.health_host, settings.health_allowed_hosts)
    return answering_to(names, routes, open_to_all=OPEN_TO_ALL_NAMES | actions)


class HealthServer:
    """Serves routes on threads that never keep the process from ending: for GET and HEAD, below /actions/ for POST.

    A child of the process neither serves nor holds the port: the sockets it inherits are closed at the fork.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        """Port 0 means any free port; see `port`."""
        self._host, self._port = without_brackets(host), port
        self._routes = routes
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port in use; 0 before `bind`."""
        return self._server.server_port if self._server else 0

    def bind(self) -> None:
        """Bind the port without serving it yet. Raises `SettingsError`, which names the variable to change."""
        if self._server is None:
            try:
                self._server = _Server(self._host, self._port, self._routes)
            except OSError as error:
                raise _explain(error, self._host, self._port) from error

    def start(self) -> None:
        """Start serving. Raises `SettingsError` as `bind` does."""
        self.bind()
        assert self._server is not None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SWEEP_SECONDS,), name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and close the port. May be called repeatedly, and before `start`."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._thread is not None:
            server.shutdown()
            self._thread.join()
            self._thread = None
        server.server_close()


def _answer_checks(checks: Sequence[Check]) -> Answer:
    reports = [check.report() for check in checks]
    ok = all(report.ok for report in reports)
    body = json.dumps({"ok": ok, "checks": [asdict(report) for report in reports]}) + "\n"
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(body.encode(), "application/json", status)


def _explain(error: OSError, host: str, port: int) -> SettingsError:
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return SettingsError.wrong("ORCHEO_HEALTH_HOST", host, "an address of this machine")
    if error.errno == errno.EADDRINUSE:
        takes = f"a free port on {host}: this one is in use, and each process needs its own"
    elif error.errno in (errno.EACCES, errno.EPERM):
        takes = "a port that this user may bind, such as one above 1023"
    else:
        takes = f"a port that can be bound: {error.strerror or type(error).__name__}"
    return SettingsError.wrong("ORCHEO_HEALTH_PORT", port, takes)


_bound: WeakSet[_Server] = WeakSet()


def _close_inherited() -> None:
    """Close, in a child, the sockets of its parent's server: the port must be free once the parent has ended."""
    for server in _bound:
        server.close_copies()


os.register_at_fork(after_in_child=_close_inherited)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    # Otherwise two processes on Linux could share a port, and each would answer for the other.
    allow_reuse_port = False

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self.routes = routes
        self.failing: set[str] = set()
        self._open: dict[Any, float] = {}
        self._change = threading.Condition()
        super().__init__((str(address[0]), int(address[1])), _Handler)
        _bound.add(self)

    def server_bind(self) -> None:
        """Bind without the DNS lookup of HTTPServer, which can take long and whose result is not used."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._change:
            if len(self._open) >= _CONNECTIONS:
                self._hang_up_on(itertools.islice(self._waiting(), 1))
                self._change.wait_for(lambda: len(self._open) < _THREADS, _ROOM_SECONDS)
            room = len(self._open) < _THREADS
            if room:
                self._open[request] = time.monotonic()
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def service_actions(self) -> None:
        overdue = time.monotonic() - DEADLINE_SECONDS
        with self._change:
            self._hang_up_on(request for request in self._waiting() if self._open[request] < overdue)

    def shutdown_request(self, request: Any) -> None:
        # Under the lock, so that no thread closes a descriptor that has been reused in the meantime.
        with self._change:
            self._open.pop(request, None)
            super().shutdown_request(request)
            self._change.notify()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: the client disconnected. The handler logs failures on our side."""

    def allow_action(self, request: Any) -> None:
        """Let the connection stay open for as long as an action may take."""
        with self._change:
            if self._open.get(request, _HUNG_UP) < _HUNG_UP:
                self._open[request] = time.monotonic() + _ACTION_SECONDS - DEADLINE_SECONDS

    def _waiting(self) -> Iterator[Any]:
        """Return the connections that are still open, oldest first."""
        return (request for request, since in self._open.items() if since < _HUNG_UP)

    def _hang_up_on(self, requests: Iterable[Any]) -> None:
        for request in list(requests):
            self._open[request] = _HUNG_UP
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def close_copies(self) -> None:
        for each in (self.socket, *self._open):
            if each.fileno() >= 0:
                os.close(each.detach())


class _Handler(BaseHTTPRequestHandler):
    timeout = DEADLINE_SECONDS
    server_version, sys_version = "orcheo-dispatch", ""
    server: _Server

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def do_POST(self) -> None:
        if not self.path.startswith(ACTIONS):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        length = self.headers.get("content-length", "")
        # Without a length, or in chunks, nobody knows where the body ends before it has been read.
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > len(str(_MOST_BODY_BYTES)) or int(length) > _MOST_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            body = self.rfile.read(int(length))
            self.server.allow_action(self.connection)
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        try:
            if len(self.headers.get_all("host", [])) > 1:
                raise ValueError("which of them?")
            request = Request.of(
                self.path,
                self.headers.items(),
                method=self.command,
                client=str(self.client_address[0]),
                body=body,
            )
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        path, route = request.path, self.server.routes.get(request.path)
        if route is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            answer = route(request)
        except Exception as error:  # noqa: BLE001
            if path not in self.server.failing:
                self.server.failing.add(path)
                log.error("health_route_failed", path=path, **describe(error))
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.server.failing.discard(path)
        self._send(answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer with one line that quotes nothing of the request."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        named = [path for path in self.server.routes if not path.startswith((ASSETS, ACTIONS))]
        known = f" Try {', '.join(named)}." if status is HTTPStatus.NOT_FOUND else ""
        self._send(Answer(f"{status.value} {status.phrase}.{known}\n".encode(), status=status))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: probes come every few seconds."""

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST" if self.path.startswith(ACTIONS) else "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
