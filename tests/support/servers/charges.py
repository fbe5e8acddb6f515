"""An HTTP API with effects that honours `Idempotency-Key`, as those of payment providers do."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_DEADLINE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was received."""

    path: str
    key: str
    attempt: str


class Charges:
    """Executes the effect of a request once per key; a repeated key gets the answer that was stored."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.effects: Counter[str] = Counter()
        """How many effects each path has had."""
        self._answers: dict[str, int] = {}
        self._holds: dict[tuple[str, int], threading.Event] = {}
        self._lock = threading.Lock()

    def hold(self, path: str, time: int) -> None:
        """Have no answer sent to the first request of this path's effect number `time`."""
        self._holds[path, time] = threading.Event()

    def release(self) -> None:
        """Send the answers that are held back."""
        for hold in self._holds.values():
            hold.set()

    def seen(self, path: str) -> list[Request]:
        """Return the requests of a path."""
        return [request for request in self.requests if request.path == path]

    def answer(self, request: Request) -> int:
        """Return which effect of its path the request is, after having executed it unless its key is known."""
        with self._lock:
            self.requests.append(request)
            known = self._answers.get(request.key)
            if known is not None:
                return known
            self.effects[request.path] += 1
            number = self._answers[request.key] = self.effects[request.path]
        hold = self._holds.get((request.path, number))
        if hold is not None:
            hold.wait(_DEADLINE_SECONDS)
        return number


@contextmanager
def charging() -> Iterator[Charges]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.path, self.headers["Idempotency-Key"], self.headers["Attempt"])
            body = json.dumps({"number": charges.answer(request)}).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                """The client has been killed."""

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        charges = Charges(f"http://127.0.0.1:{server.server_port}")
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield charges
        finally:
            charges.release()
            server.shutdown()
            serving.join()
