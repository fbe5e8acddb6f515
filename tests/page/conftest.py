"""The page of a dispatcher, served for real, and a Chromium to look at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from orcheo_dispatch.dispatcher.page import StatusPage
from orcheo_dispatch.shared.health.checks import condition
from orcheo_dispatch.shared.health.server import HealthServer, health_routes, protected
from orcheo_dispatch.shared.ledger.model import ProcessKind
from orcheo_dispatch.shared.ledger.processes import Process
from tests.support.database.databases import Database
from tests.support.database.roles import Kind
from tests.support.database.runs import settings_for


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
            server = HealthServer("127.0.0.1", port, protected(chosen, routes))
            server.start()
            stack.callback(server.stop)
            return Served(server, page, wrong)

        yield start


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, one a session."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium gives one, TEST_CHROMIUM=... names one")
    # Chromium's sandbox is not for root, who runs the tests in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@dataclass(slots=True)
class Window:
    """A page in a browser, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        self.page.goto(url)
        expect(self.page.locator("html")).not_to_have_attribute("data-level", "unknown")
        expect(self.page.locator("#runs-table")).not_to_have_attribute("aria-busy", "true")
        return self.page


type Look = Callable[..., Window]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """What opens a window of this theme and width; at the end of the test nothing may have gone wrong in any."""
    windows: list[Window] = []
    contexts: list[BrowserContext] = []

    def open_window(
        scheme: Literal["light", "dark"] = "light", width: int = 1280, height: int = 800, **headers: str
    ) -> Window:
        context = browser.new_context(
            color_scheme=scheme,
            viewport={"width": width, "height": height},
            extra_http_headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        contexts.append(context)
        context.add_init_script(_NOTE)
        page = context.new_page()
        window = Window(page)
        windows.append(window)
        page.on("pageerror", lambda error: window.complaints.append(str(error)))
        page.on("dialog", lambda dialog: window.complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "console",
            lambda said: window.complaints.append(said.text) if said.type in {"error", "warning"} else None,
        )
        return window

    yield open_window
    complaints = [complaint for window in windows for complaint in window.complaints]
    for context in contexts:
        context.close()
    assert complaints == []


# What shifts without anybody having touched it, in shares of the window.
_NOTE = """
window.shifted = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""
