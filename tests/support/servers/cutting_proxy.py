"""A TCP proxy in the test's own process that lets a COMMIT through, and cuts the connection before its answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

# The end of the message too: a transaction begins with READ COMMITTED.
_COMMIT = b"COMMIT\x00"
_BYTES = 65536


class CuttingProxy:
    """Forwards to the server of `dsn`; see `cut`."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._cuts, self._of = 0, b""
        self._refusing = threading.Event()
        self._lock = threading.Lock()
        self.cut_at: list[bytes] = []
        """What was being said when connections were cut."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def dsn(self) -> str:
        """Return the DSN that leads through the proxy; without TLS, in which nobody could see a COMMIT."""
        login = self._parts.netloc.rpartition("@")[0]
        netloc = f"{login}@127.0.0.1:{self._listener.getsockname()[1]}"
        query = urlencode({**dict(parse_qsl(self._parts.query)), "sslmode": "disable"})
        return urlunsplit(self._parts._replace(netloc=netloc, query=query))

    def cut(self, times: int = 1, *, of: bytes = b"") -> None:
        """Cut the connection after each of the next commits, when the server has answered and nobody has heard it.

        Only of transactions that have sent these bytes.
        """
        with self._lock:
            self._cuts, self._of = times, of

    def refuse(self, refusing: bool) -> None:
        """Take no new connections, as a server that is unavailable, or take them again."""
        (self._refusing.set if refusing else self._refusing.clear)()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                if self._refusing.is_set():
                    near.close()
                    continue
                far = socket.create_connection((self._parts.hostname or "", self._parts.port or 5432))
                cutting = threading.Event()
                for source, target, upwards in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pass, args=[source, target, upwards, cutting], daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, upwards: bool, cutting: threading.Event) -> None:
        said = b""
        with contextlib.suppress(OSError):
            while data := source.recv(_BYTES):
                said += data if upwards else b""
                if upwards and _COMMIT in data:
                    with self._lock:
                        if self._cuts and self._of in said:
                            self._cuts -= 1
                            cutting.set()
                    said = b""
                elif not upwards and cutting.is_set():
                    self.cut_at.append(data)
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
