"""An HTTP server that takes messages as a webhook would: it keeps them, or never answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """What arrived, and how the server answers."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = 200
        self.requests = 0
        self.release = threading.Event()
        """Requests are answered once it is set."""
        self.release.set()
        self.port = 0

    def titles(self, part: str = "") -> list[str]:
        """Return the titles of the messages that hold `part`, in order."""
        return [each["title"] for each in list(self.messages) if part in each["title"]]

    def url(self, secret: str = "path") -> str:
        """Return its URL for Apprise, which holds a secret."""
        return f"json://someone:{secret}@127.0.0.1:{self.port}/{secret}?rto=3&cto=3"


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Yield a server on a port of its own."""
    found = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests += 1
            found.release.wait(60)
            if found.status == 200:
                found.messages.append(body)
            self.send_response(found.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.release.set()
            server.shutdown()
            thread.join(10)
