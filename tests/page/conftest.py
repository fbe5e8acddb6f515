"""The page of a dispatcher, served for real, and a Chromium to look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import pytest

from dispatcher.page import StatusPage
from shared.access import guarded
from shared.checks import condition
from shared.health import OPEN_TO_ALL, HealthServer, health_routes
from shared.ledger import ProcessKind
from shared.processes import Process
from tests.databases import Database
from tests.roles import Kind
from tests.runs import settings_for


@dataclass(slots=True)
class Served:
    """A page, and what the test says of the process behind it."""

    server: HealthServer
    page: StatusPage
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()
        finally:
            connection.close()


type Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """What serves the page of a dispatcher on a database, with the rights of a dispatcher, as in production."""
    with ExitStack() as stack:

        def start(database: Database, *, kind: Kind | None = None, port: int = 0, **settings: Any) -> Served:
            seen = database.seen_by(kind) if kind else database
            # The server is asked for any port; the settings only for the page.
            chosen = settings_for(seen, health_port=1, **settings)
            page = StatusPage(chosen, Process(ProcessKind.DISPATCHER, host="queue-1", pid=812))
            stack.callback(page.close)
            wrong: dict[str, str] = {}
            checks = [
                condition("poll", lambda: wrong.get("poll"), "last poll succeeded 0.2 s ago, limit 5 s"),
                condition("broker", lambda: wrong.get("broker"), "Redis answers"),
            ]
            routes = health_routes(live=checks[:1], ready=checks, metrics=lambda: (b"up 1\n", "text/plain"))
            routes |= page.routes(checks)
            server = HealthServer("127.0.0.1", port, guarded(routes, chosen.health_token, open_to_all=OPEN_TO_ALL))
            server.start()
            stack.callback(server.stop)
            return Served(server, page, wrong)

        yield start
