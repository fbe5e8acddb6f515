"""Something that listens where an API should, and answers what a test says, byte by byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

type Answer = bytes | Callable[[socket.socket], None]


@dataclass
class Listener:
    """A server of one answer for all that connect, and what they sent."""

    answer: Answer
    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def listening(answer: Answer) -> Iterator[Listener]:
    """Yield a listener, each of whose connections gets this answer and is closed."""
    listener = Listener(answer)
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener.port = server.getsockname()[1]
        thread = threading.Thread(target=_serve, args=(server, listener), daemon=True)
        thread.start()
        yield listener
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def response(status: str, body: bytes = b"", *headers: str) -> bytes:
    """Return an HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _serve(server: socket.socket, listener: Listener) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, suppress(OSError):
            client.settimeout(10)
            listener.requests.append(client.recv(65_536))
            if callable(listener.answer):
                listener.answer(client)
            else:
                client.sendall(listener.answer)
